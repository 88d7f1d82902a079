"""Serves base + delta with vLLM's OpenAI-compatible server; no checkpoint is written.

    python serve/serve.py DELTA                                  over the base that the delta names
    python serve/serve.py DELTA --base B --port 8001 --max-model-len 2048          any flag of `vllm serve`
    python serve/serve.py DELTA --swappable                      serve/swap.py may put another delta in its place

Everything that can be wrong with delta and base is said in one line before the engine starts. The model is called
`impart` in requests, whichever delta is served, unless --served-model-name says otherwise. --swappable opens vLLM's
development endpoints, through which anyone who reaches the port governs the engine: for networks that you trust.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run as `python serve/serve.py`: import from the repository root, not from serve/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.engine.memory import GIB, gpu_memory, ram_available
from eval.engine.vllm_model import delta_arguments, vllm_problem
from impart.config import Parser
from impart.errors import InputError, reason_of, run
from impart.overlay import Overlay, open_overlay
from impart.report import start_logging

NAME = "impart"  # of the served model


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("delta", metavar="DELTA", help="folder of a delta artifact")
    parser.add_argument("--base", "--base_model", help="folder or hub id of its base, where that has moved")
    parser.add_argument("--swappable", action="store_true", help="let serve/swap.py change the delta")
    parser.add_argument("--tensor-parallel-size", "--tensor_parallel_size", "-tp", type=int, default=1, metavar="N")
    given, others = parser.parse_known_args(arguments)
    start_logging()
    overlay = open_overlay(given.delta, given.base)
    refuse_without_room(overlay, given.tensor_parallel_size)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")
    with silence():
        refuse_unknown(overlay)
    if given.swappable:
        os.environ["VLLM_SERVER_DEV_MODE"] = "1"
    start(overlay, ["--tensor-parallel-size", str(given.tensor_parallel_size), *others])


def refuse_without_room(overlay: Overlay, ranks: int) -> None:
    """InputError when a device cannot hold its share of the weights and what decoding one matrix takes."""
    weights, decoding = overlay.weight_bytes("auto"), overlay.decode_bytes()
    frees = [free for free, _ in gpu_memory()[:ranks]] or [ram_available() // ranks]
    for number, free in enumerate(frees):
        if weights / ranks + decoding > free:
            raise InputError(
                f"{str(overlay.delta.path)!r}: the weights take {weights / ranks / GIB:.1f} GiB of each of {ranks} "
                f"devices and decoding the largest matrix {decoding / GIB:.1f} GiB, but device {number} has "
                f"{free / GIB:.1f} GiB free; free some, or take more devices with --tensor-parallel-size"
            )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No log: what vLLM says while it is asked whether it can run a model is said in one line, or of no interest."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def refuse_unknown(overlay: Overlay) -> None:
    """InputError where vLLM is missing, and for a model that it cannot run."""
    problem = vllm_problem()
    if problem:
        raise InputError(f"{problem}; serving needs it: bash requirements/environment.sh full")
    from vllm.engine.arg_utils import EngineArgs

    try:
        EngineArgs(model=str(overlay.folder)).create_model_config()
    except Exception as error:  # vLLM, pydantic and transformers have types of their own
        details = error.errors() if hasattr(error, "errors") else []
        reason = details[0]["msg"].removeprefix("Value error, ").split("\n")[0] if details else reason_of(error)
        raise InputError(f"vLLM cannot run the model of {str(overlay.delta.path)!r}: {reason}") from error


def start(overlay: Overlay, flags: Sequence[str]) -> None:
    """`vllm serve` in this process. Its workers import the suite from where it lies."""
    from vllm.entrypoints.cli.main import main as vllm_main

    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    named = [] if any(flag.startswith("--served-model-name") for flag in flags) else ["--served-model-name", NAME]
    spelled = []
    for flag, value in delta_arguments(overlay).items():
        spelled += [f"--{flag.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
    sys.argv = ["vllm", "serve", *spelled, *named, *flags]
    vllm_main()


if __name__ == "__main__":
    run(main)
