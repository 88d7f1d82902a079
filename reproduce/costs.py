"""What a plan of steps will cost in disk, GPU memory and hours, and whether its models, data and keys are there.

    bash reproduce/table1.sh --dry-run          (which pipes its plan in here)

Reads from stdin one step a line: stage, pair, detail and command, separated by tabs. CPU seconds are fitted to
measurements on one thread of an x86-64 core with AVX2: SVDs of 1024 to 5120 wide deltas, masks of 5120 x 2048, one
calibrated layer of width 512, and processor time of sparsify, quantize and evaluate on the tiny pair. GPU seconds are
estimates from flops and bytes.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as `python reproduce/costs.py`: import from the repository root, not from reproduce/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import yaml

from impart.config import Parser
from impart.errors import InputError, run
from impart.hub import availability, is_hub_id

CONFIGS = Path("configs")
START = 3.0  # seconds until a script has imported what it needs
DISK_RATE = 1e9  # bytes per second
TINY_TOKENS = 25
# items and mean tokens of an answer, the file in IMPART_DATA, and the data set on the hub (none: a package has them)
BENCHMARKS = {
    "gsm8k": (1319, 200, "gsm8k_test.jsonl", "openai/gsm8k"),
    "math": (5000, 400, "math_test.jsonl", "DigitalLearningGmbH/MATH-lighteval"),
    "humaneval": (164, 250, None, None),
    "mbpp": (378, 150, None, None),
    "ifeval": (541, 400, "ifeval.jsonl", "google/IFEval"),
    "alpacaeval": (805, 400, "alpaca_eval_gpt4_1106_preview.json", "tatsu-lab/alpaca_eval"),
}


@dataclass(frozen=True)
class Machine:
    """Coefficients of one device. `svd`: seconds per m * n * min(m, n); `flops` per second of calibration."""

    svd: float
    mask: float  # seconds per entry of the factors
    flops: float
    answer_flops: float  # 2 * parameters per generated token
    most_tokens: float  # tokens per second, however small the model
    merge: float  # seconds per parameter


CPU = Machine(svd=2.75e-10, mask=4.3e-9, flops=4e10, answer_flops=4e9, most_tokens=1600, merge=3.2e-8)
GPU = Machine(svd=3.4e-12, mask=4e-11, flops=1e14, answer_flops=6e13, most_tokens=20000, merge=2e-9)


@dataclass(frozen=True)
class Step:
    """One command of a plan."""

    stage: str
    pair: str
    detail: str  # ratio, or benchmarks
    command: str


@dataclass(frozen=True)
class Size:
    """A model's size: parameters, width and depth."""

    parameters: float
    width: int
    layers: int


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--pairs", default="", help="pairs of the table")
    parser.add_argument("--jobs", type=int, default=1, help="steps at a time")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of this machine")
    parser.add_argument("--quiet", action="store_true", help="only check")
    flags = parser.parse_args(arguments)
    steps = [Step(*line.split("\t", 3)) for line in sys.stdin.read().splitlines() if line]
    sizes = {pair: size_of(pair) for pair in {step.pair for step in steps}}
    if not flags.quiet:
        print(summary(steps, sizes, flags.jobs, flags.gpus))
    missing = problems(steps)
    needed = disk(steps, sizes, flags.jobs)
    free = shutil.disk_usage(".").free
    if needed > free:
        missing.append(f"disk: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
    if missing:
        raise InputError("; ".join(missing))


def size_of(pair: str) -> Size | None:
    """What the pair's file says; None where it says nothing."""
    settings = pair_settings(pair)
    keys = ("parameters", "hidden_size", "layers")
    if any(settings.get(key) is None for key in keys):
        return None
    return Size(1e9 * settings["parameters"], settings["hidden_size"], settings["layers"])


def pair_settings(pair: str) -> Mapping:
    return yaml.safe_load((CONFIGS / pair / "pair.yaml").read_text())


def seconds(step: Step, size: Size, machine: Machine) -> float:
    """Expected time of one step."""
    weights = size.parameters
    if step.stage == "svd":
        return START + machine.svd * weights * size.width + 8 * weights / DISK_RATE
    if step.stage == "sparsify":
        return START + 2 * machine.mask * weights + 4 * weights / DISK_RATE
    if step.stage == "quantize":
        tokens = 4096 if "assets/tiny" in step.command else 262144
        return 3 * START + (6 * weights * tokens + 8 * weights * size.width) / machine.flops + 6 * weights / DISK_RATE
    masked = 3 * machine.svd * weights * size.width if "mask=impart" in step.command else 0.0
    merging = START + machine.merge * weights + masked + 8 * weights / DISK_RATE if step.stage == "merge" else 0.0
    return merging + evaluation_seconds(step, size, machine)


def evaluation_seconds(step: Step, size: Size, machine: Machine) -> float:
    """Rebuilding, loading and answering, for every model and benchmark of the command."""
    benchmarks = step.detail.split()
    rate = min(machine.most_tokens, machine.answer_flops / (2 * size.parameters))
    if benchmarks[0].startswith("tiny_"):
        models = len(re.findall(r"\S+", step.command.partition("eval/tiny.py ")[2].partition(" --tasks")[0]))
        return 2 * START + models * len(benchmarks) * (2 + 200 * TINY_TOKENS / rate)
    answers = sum(BENCHMARKS[name][0] * BENCHMARKS[name][1] for name in benchmarks)
    return len(benchmarks) * (60 + 2 * size.parameters / DISK_RATE) + answers / rate + 4 * size.parameters / DISK_RATE


def disk(steps: Sequence[Step], sizes: Mapping[str, Size | None], jobs: int) -> float:
    """Bytes that the plan adds at its largest: deltas, and the dense models of `jobs` evaluations at a time."""
    kept = dense = 0.0
    for step in steps:
        size = sizes[step.pair]
        if size is None:
            continue
        if step.stage == "svd":
            kept += 4.4 * size.parameters
        elif step.stage in ("sparsify", "quantize"):
            ratio = float(step.detail) / (8 if ".sparse" in step.command and step.stage == "sparsify" else 1)
            kept += 2.2 * size.parameters / max(ratio, 1) + 0.06 * size.parameters
        else:
            dense = max(dense, 2.1 * size.parameters)
    return kept + dense * min(jobs, sum(step.stage in ("evaluate", "merge") for step in steps))


def gpu_bytes(step: Step, size: Size) -> float:
    """Memory of one step on its GPU."""
    if step.stage in ("evaluate", "merge"):
        return 2.4 * size.parameters
    matrix = size.width * 2.7 * size.width
    return 8 * matrix + 32 * size.width**2 + (4 * 128 * 2048 * size.width if step.stage == "quantize" else 0)


def summary(steps: Sequence[Step], sizes: Mapping[str, Size | None], jobs: int, gpus: int) -> str:
    """One line per stage: number of steps, hours on this kind of machine, memory; then the whole."""
    machine, device = (GPU, "GPU, estimated") if gpus else (CPU, "CPU")
    lines, total = [], 0.0
    for stage in ("svd", "sparsify", "quantize", "evaluate", "merge"):
        own = [step for step in steps if step.stage == stage]
        known = [step for step in own if sizes[step.pair]]
        if own:
            spent = sum(seconds(step, sizes[step.pair], machine) for step in known) / 3600
            spent_gpu = sum(seconds(step, sizes[step.pair], GPU) for step in known) / 3600
            memory = max((gpu_bytes(step, sizes[step.pair]) for step in known), default=0.0) / 1e9
            total += spent
            lines.append(
                f"# {stage}: {len(own)} steps, {spent:.2f} h ({device})"
                + ("" if gpus else f", {spent_gpu:.2f} h on one GPU (estimated)")
                + f", {memory:.1f} GB of GPU memory where there is one"
            )
    if any(size is None for size in sizes.values()):
        lines.append("# not counted: pairs whose pair.yaml lacks parameters, hidden_size or layers")
    lines.append(
        f"# in all: {len(steps)} steps missing, {total:.2f} h on one device, {total / jobs:.2f} h with {jobs} at a "
        f"time; {disk(steps, sizes, jobs) / 1e9:.2f} GB of disk"
    )
    return "\n".join(lines)


def problems(steps: Sequence[Step]) -> list[str]:
    """What the plan needs and is not there: models, data sets, keys."""
    found = []
    for pair in sorted({step.pair for step in steps}):
        settings = dict(pair_settings(pair))
        if (CONFIGS / pair / "merge.yaml").is_file():
            settings |= yaml.safe_load((CONFIGS / pair / "merge.yaml").read_text())
        models = (settings.get(key) for key in ("base_model", "ftm_dir", "math_pth", "code_pth", "chat_pth"))
        found += [problem for model in models if model and (problem := model_problem(model))]
        if any(step.pair == pair and step.stage == "quantize" for step in steps) and settings["calibration"] == "c4":
            found.append(availability("allenai/c4", "dataset", "calibration data"))
    names = {name for step in steps if step.stage in ("evaluate", "merge") for name in step.detail.split()}
    held_out = any("--data " in step.command for step in steps)
    found += [data_problem(name) for name in sorted(names & set(BENCHMARKS)) if not held_out]
    if "alpacaeval" in names and not (os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")):
        found.append("key: alpacaeval needs OPENAI_API_KEY, or OPENAI_BASE_URL of a judge of your own")
    return list(dict.fromkeys(problem for problem in found if problem))


def model_problem(model: str) -> str | None:
    """Why a model cannot be had; None when it can."""
    if (Path(model).expanduser() / "config.json").is_file():
        return None
    if not is_hub_id(model):
        return f"model {model!r} is no folder with a config.json"
    return availability(model, "model", "model")


def data_problem(benchmark: str) -> str | None:
    """Why a benchmark's items cannot be had; None when they can."""
    _, _, file, repository = BENCHMARKS[benchmark]
    folder = os.environ.get("IMPART_DATA")
    if file is None or (folder and (Path(folder) / file).is_file()):
        return None
    return availability(repository, "dataset", f"data of {benchmark} ({file} in IMPART_DATA)")


if __name__ == "__main__":
    run(main)
