"""Task arithmetic and TIES of the same models by merge/merge.py and by mergekit, entry by entry, with the time of both.

mergekit pins older versions of what this project uses; give it an environment of its own and name its command:

    python -m venv /tmp/mergekit && /tmp/mergekit/bin/pip install mergekit==0.1.4 "transformers<4.54"
    python benchmarks/merge_against_mergekit.py --mergekit /tmp/mergekit/bin/mergekit-yaml

Both merge the same float32 models: three random steps away from the base assets/tiny/base (or --base), with different
magnitudes everywhere, then the three tiny skills themselves, whose 16-bit deltas have many equal magnitudes. There the
two trim differently: mergekit keeps int(density * n) entries and lets the position decide between equal ones, merge.py
keeps all that tie with the smallest survivor. Where deltas cancel exactly, mergekit elects plus, merge.py nobody.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python benchmarks/merge_against_mergekit.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import yaml

from benchmarks.side_by_side import cpu_name
from impart.checkpoint import Checkpoint, open_checkpoint
from impart.checkpoint_writer import CheckpointWriter
from impart.config import Parser
from impart.errors import InputError, run
from impart.report import table
from impart.weight_files import TensorSpec

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "assets" / "tiny"
METHODS = ("ta_0.5", "ta_1.2", "ties_0.5_1.0", "ties_0.8_0.6", "ties_0_1.0")


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--mergekit", default="mergekit-yaml", help="the mergekit-yaml command (default: %(default)s)")
    parser.add_argument("--base", default=str(TINY / "base"), help="the model to step away from (default: %(default)s)")
    flags = parser.parse_args(arguments)
    if shutil.which(flags.mergekit) is None:
        raise InputError(f"--mergekit {flags.mergekit!r} is not a command; --help says how to install mergekit")
    base = open_checkpoint(flags.base)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        copies = [step(base, work / f"random{seed}", seed) for seed in (1, 2, 3)]
        plain = step(base, work / "base", None)
        rows = compare("random", plain, copies, work, flags.mergekit)
        if Path(flags.base) == TINY / "base":
            rows += compare(
                "tiny", TINY / "base", [TINY / name for name in ("math", "code", "chat")], work, flags.mergekit
            )
    print(cpu_name())
    print(table(rows, ("models, method", "entries", "differ > 1e-6", "largest", "mergekit s", "merge.py s")))


def step(base: Checkpoint, path: Path, seed: int | None) -> Path:
    """The base in float32, every weight moved by a tenth of its size and more; unmoved without a seed."""
    plan = [TensorSpec(name, base.shape(name), torch.float32) for name in base.names()]
    writer = CheckpointWriter(path, plan)
    for spec in plan:
        weight = base.tensor(spec.name).float()
        if seed is not None:
            generator = torch.Generator().manual_seed(seed * 10**6 + len(spec.name) + sum(spec.shape))
            weight = weight + 0.1 * weight.std() * torch.randn(spec.shape, generator=generator)
        writer.add(spec.name, weight)
    writer.finish(base.companions())
    return path


def compare(kind: str, base: Path, models: Sequence[Path], work: Path, mergekit: str) -> list[list[str]]:
    rows = []
    for method in METHODS:
        theirs, ours = work / f"mergekit_{kind}_{method}", work / f"ours_{kind}_{method}"
        config = work / f"{kind}_{method}.yaml"
        config.write_text(yaml.safe_dump(mergekit_config(method, base, models)))
        named = [text for number, path in enumerate(models) for text in ("--model", f"m{number}={path}")]
        seconds = [
            timed([mergekit, config, theirs, "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]),
            timed(
                [
                    sys.executable,
                    ROOT / "merge" / "merge.py",
                    "--merge_method",
                    method,
                    "--ptm_pth",
                    base,
                    "--save_pth",
                    ours,
                    "--force",
                    "dtype=float32",
                    *named,
                ]
            ),
        ]
        found, expected = open_checkpoint(ours), open_checkpoint(theirs)
        assert found.names() == expected.names(), "the two merged models have different tensors"
        gaps = torch.cat(
            [(found.tensor(name).double() - expected.tensor(name).double()).abs().flatten() for name in found.names()]
        )
        differing = int((gaps > 1e-6).sum())
        # int(density * n) and n - int(trim * n) can be one apart: one entry of each tensor of each model
        allowed = len(models) * len(found.names()) if method.startswith("ties") else 0
        if differing > allowed and kind == "random":
            sys.exit(f"{method}: {differing} entries differ, {allowed} may by rounding")
        rows.append(
            [
                f"{kind}, {method}",
                gaps.numel(),
                differing,
                f"{float(gaps.max()):.1e}",
                *(f"{value:.1f}" for value in seconds),
            ]
        )
    return rows


def mergekit_config(method: str, base: Path, models: Sequence[Path]) -> dict:
    kind, *numbers = method.split("_")
    parameters = {"weight": 1.0} | ({"density": 1 - float(numbers[0])} if kind == "ties" else {})
    return {
        "merge_method": "task_arithmetic" if kind == "ta" else "ties",
        "base_model": str(base),
        "dtype": "float32",
        "models": [{"model": str(path), "parameters": parameters} for path in models],
        "parameters": {"normalize": kind == "ties", "lambda": float(numbers[-1])},
    }


def timed(command: Sequence[str | Path]) -> float:
    started = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


if __name__ == "__main__":
    run(main)
