"""What an evaluation waits for before its first answer: vLLM in one process and in several, and the hf backend.

    python benchmarks/engine_startup.py                       # on the tiny pair's base model
    python benchmarks/engine_startup.py --model PATH --engines vllm,hf

Every row is a fresh Python. "imports" is from its start until the engine's packages are imported, "first answer" from
there until one prompt of a model is answered, "next model" the same for a second engine in the same process, "64
answers" are 32 tokens each.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if (
    not __package__
):  # run as `python benchmarks/engine_startup.py`: import from the repository root, not from benchmarks/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart.config import Parser
from impart.errors import InputError, run

ROOT = Path(__file__).resolve().parents[1]
ENGINES = {  # name -> (backend, what is set in the environment)
    "vllm": ("vllm", {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}),
    "vllm-processes": ("vllm", {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}),
    "hf": ("hf", {}),
}
STAGES = ("imports", "first answer", "next model", "64 answers")


def measured(backend: str, model: str, since: float) -> dict[str, float]:
    """Seconds of each stage, in this process, which was started at the time `since`."""
    from eval.engine.engine import Engine
    from eval.engine.settings import EngineSettings

    if backend == "vllm":
        import vllm  # noqa: F401 (its import is what is measured)
        from vllm import LLM  # noqa: F401
    else:
        import eval.engine.hf  # noqa: F401
    seconds = {"imports": time.time() - since}
    settings = EngineSettings(backend=backend, dtype="fp32")
    prompt = "The answer is"
    for stage in ("first answer", "next model"):
        started = time.monotonic()
        with Engine(model, settings) as engine:
            engine.generate([prompt], max_tokens=1)
            seconds[stage] = time.monotonic() - started
            started = time.monotonic()
            engine.generate([f"{prompt} {number}" for number in range(64)], max_tokens=32)
            seconds["64 answers"] = time.monotonic() - started
    return seconds


def in_fresh_python(name: str, model: str) -> dict[str, float]:
    """`measured` in a process of its own."""
    backend, environment = ENGINES[name]
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--measure",
        backend,
        "--model",
        model,
        "--since",
        str(time.time()),
    ]
    ended = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment, cwd=ROOT, capture_output=True, text=True
    )
    if ended.returncode:
        raise InputError(f"{name} did not run: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(ended.stdout.strip().splitlines()[-1])


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--model", default=str(ROOT / "assets" / "tiny" / "base"), help="checkpoint folder")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"comma-separated (default: {','.join(ENGINES)})")
    parser.add_argument("--measure", choices=("vllm", "hf"), help="one row, in this process, as JSON")
    parser.add_argument(
        "--since", type=float, default=time.time(), help="with --measure: when this process was started"
    )
    given = parser.parse_args(arguments)
    if given.measure:
        print(json.dumps(measured(given.measure, given.model, given.since)))
        return
    from benchmarks.side_by_side import (
        cpu_name,
    )  # these import torch, which the measured process has to import by itself
    from impart.report import table

    unknown = [name for name in given.engines.split(",") if name not in ENGINES]
    if unknown:
        raise InputError(f"--engines: {unknown[0]!r} is none of {', '.join(ENGINES)}")
    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} processors; model {Path(given.model).name}")
    rows = []
    for name in given.engines.split(","):
        seconds = in_fresh_python(name, given.model)
        rows.append([name, *(f"{seconds[stage]:.1f}" for stage in STAGES)])
    print(table(rows, ["engine (seconds)", *STAGES]))


if __name__ == "__main__":
    run(main)
