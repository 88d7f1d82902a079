"""What a plan will cost in disk, GPU memory and hours, and whether its models, data and keys are there.

impart/costs.py has the coefficients of the devices.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.run.descriptions import Description, described
from impart.costs import CPU, DISK_RATE, GPU, START, Device, Work, duration
from impart.files import room_below, user_path
from impart.foreign_folders import foreign_kind
from impart.hub import availability, is_hub_id
from impart.pair import Pair
from reproduce.steps import STAGES, Step

ENGINE_START = 60.0  # seconds until vLLM answers
ITEM_TOKENS = 100  # of an item that is read and not answered
EMBEDDINGS = 0.03  # share of embedding and head in a model whose file does not tell; they travel whole in 16 bit
SMALL = 500e6  # parameters below which the hf backend answers, which is loaded in a moment


@dataclass(frozen=True)
class Size:
    """A model's size."""

    parameters: float
    width: int
    layers: int
    active: float  # parameters that a token passes
    embeddings: float  # parameters of embedding and head
    side: int  # mean over the weights of min(m, n)


def size_of(pair: Pair) -> Size | None:
    """What the pair's file says; None where it says nothing."""
    if pair.parameters is None or pair.hidden_size is None or pair.layers is None:
        return None
    parameters, width = 1e9 * pair.parameters, pair.hidden_size
    active = parameters if pair.active_parameters is None else 1e9 * pair.active_parameters
    embeddings = EMBEDDINGS * parameters if pair.embeddings is None else 1e9 * pair.embeddings
    return Size(parameters, width, pair.layers, active, embeddings, pair.smaller_side or width)


def seconds(step: Step, pair: Pair, device: Device) -> float:
    """Expected time of one step; 0 where the pair's size is not known."""
    size = size_of(pair)
    if size is None:
        return 0.0
    if step.stage == "information":
        return information_seconds(size, pair, device)
    if step.stage == "quantize":  # three processes: allocation, its sparse delta, sparse GPTQ
        return 2 * START + work_of(step, size, pair).seconds(device)
    prepared = 0.0 if step.stage == "evaluate" else work_of(step, size, pair).seconds(device)
    return prepared + (0.0 if step.stage in ("svd", "sparsify") else evaluation_seconds(step, size, device))


def work_of(step: Step, size: Size, pair: Pair) -> Work:
    """What a step computes, reads and writes, as of one matrix that holds all parameters."""
    weights = int(size.parameters)
    shapes = [(weights // size.side, size.side)]
    if step.stage == "svd":
        return Work(shapes, written=4 * weights, svds=1)
    if step.stage == "sparsify":
        return Work(shapes, written=0, masked=True)
    if step.stage == "merge":
        return Work(shapes, written=2 * weights, svds=3 * step.masked, read=3, merged=weights)
    given = pair.calibration_settings
    tokens = given.get("nsamples", 128) * given.get("seqlen", 2048)
    return Work(shapes, written=0, read=3, tokens=round(tokens * size.active / size.parameters))


def information_seconds(size: Size, pair: Pair, device: Device) -> float:
    """A pass forward and one back through the model for every token of the text."""
    given = pair.distillation_settings
    tokens = given.get("nsamples", 32) * given.get("seqlen", 128)
    return START + 6 * size.active * tokens / device.flops + 2 * size.parameters / DISK_RATE


def evaluation_seconds(step: Step, size: Size, device: Device) -> float:
    """Starting an engine per benchmark, then decoding and answering for every model."""
    asked = [described()[name] for name in step.benchmarks]
    rate = min(device.most_tokens, device.answer_flops / (2 * size.active))
    read = sum(one.items * ITEM_TOKENS for one in asked if not one.answer_tokens) * 2 * size.active / device.flops
    answers = step.models * (sum(one.items * one.answer_tokens for one in asked) / rate + read)
    if size.parameters < SMALL:
        return 2 * START + 2 * step.models * len(asked) + answers
    return len(asked) * (ENGINE_START + step.models * 2 * size.parameters / DISK_RATE) + answers


def disk(steps: Sequence[Step], pairs: Mapping[str, Pair], jobs: int) -> float:
    """Bytes that the plan adds at its largest: deltas, and the merged models of `jobs` steps at a time."""
    kept = dense = 0.0
    for step in steps:
        size = size_of(pairs[step.pair])
        if size is None:
            continue
        if step.stage == "svd":
            kept += 4.4 * size.parameters + 2 * size.embeddings
        elif step.ratio is not None:
            kept += 2.2 * size.parameters / max(step.ratio, 1) + 2 * size.embeddings
        elif step.stage == "merge":
            dense = max(dense, 2.1 * size.parameters)
    return kept + dense * min(jobs, sum(step.stage == "merge" for step in steps))


def gpu_bytes(step: Step, pair: Pair) -> float:
    """Memory of one step on its GPU."""
    size = size_of(pair)
    if size is None:
        return 0.0
    if step.stage in ("information", "evaluate", "merge"):
        return 2.4 * size.parameters
    matrix = size.width * 2.7 * size.width
    return 8 * matrix + 32 * size.width**2 + (4 * 128 * 2048 * size.width if step.stage == "quantize" else 0)


def summary(steps: Sequence[Step], pairs: Mapping[str, Pair], jobs: int, gpus: int) -> str:
    """One line per stage: number of steps, time on this kind of machine, memory; then the whole."""
    device, name = (GPU, "GPU, estimated") if gpus else (CPU, "CPU")
    lines, total = [], 0.0
    for stage in STAGES:
        own = [step for step in steps if step.stage == stage]
        if own:
            spent = sum(seconds(step, pairs[step.pair], device) for step in own)
            on_gpu = sum(seconds(step, pairs[step.pair], GPU) for step in own)
            memory = max(gpu_bytes(step, pairs[step.pair]) for step in own) / 1e9
            total += spent
            lines.append(
                f"# {stage}: {len(own)} step{'s' * (len(own) > 1)}, {duration(spent)} ({name})"
                + ("" if gpus else f", {duration(on_gpu)} on one GPU (estimated)")
                + (f", {memory:.1f} GB of GPU memory where there is one" if memory >= 0.05 else "")
            )
    if any(size_of(pair) is None for pair in pairs.values()):
        lines.append("# not counted: pairs whose pair.yaml lacks parameters, hidden_size or layers")
    lines.append(
        f"# in all: {len(steps)} steps missing, {duration(total)} on one device, {duration(total / jobs)} with {jobs} "
        f"at a time; {disk(steps, pairs, jobs) / 1e9:.2f} GB of disk"
    )
    return "\n".join(lines)


def problems(steps: Sequence[Step], pairs: Mapping[str, Pair], jobs: int, folder: Path) -> list[str]:
    """What the plan needs and is not there, a sentence each: models, data sets, keys, disk below `folder`."""
    found: list[str | None] = []
    for name in sorted({step.pair for step in steps}):
        pair = pairs[name]
        found += missing_models(pair)
        if any(step.pair == name and step.stage == "quantize" for step in steps) and pair.calibration == "c4":
            found.append(availability("allenai/c4", "dataset", "calibration data"))
    held_out = any("--data" in command for step in steps for command in step.commands)
    asked = [described()[name] for name in sorted({name for step in steps for name in step.benchmarks})]
    found += [data_problem(one) for one in asked if not held_out]
    has_key = os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")
    for one in asked:
        if one.needs_key and not has_key:
            found.append(f"key: {one.name} needs OPENAI_API_KEY, or OPENAI_BASE_URL of a judge of your own")
    needed, free = disk(steps, pairs, jobs), room_below(folder)
    if needed > free:
        found.append(f"disk: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
    return list(dict.fromkeys(problem for problem in found if problem))


def missing_models(pair: Pair) -> list[str]:
    """Why models of a pair cannot be opened, and which command makes them where the pair says so."""
    models = [model for model in (pair.base_model, pair.ftm_dir, *pair.models.values()) if model]
    remedy = f"; make it with: {pair.make_models}" if pair.make_models else ""
    return [f"{problem}{remedy}" for model in models if (problem := model_problem(model))]


def model_problem(model: str) -> str | None:
    """Why a model cannot be opened; None when it can."""
    folder = user_path(model)
    if folder.is_dir() and (kind := foreign_kind(folder)):
        return f"model {model!r}: {kind}"
    if (folder / "config.json").is_file():
        return None
    if folder.is_dir() or not is_hub_id(model):
        return f"model {model!r} is no folder with a config.json"
    return availability(model, "model", "model")


def data_problem(benchmark: Description) -> str | None:
    """Why a benchmark's items cannot be read; None when they can."""
    source, folder = benchmark.source, os.environ.get("IMPART_DATA")
    if source is None or (folder and (Path(folder) / source.file).is_file()) or source.hub is None:
        return None
    what = f"data of {benchmark.name} ({source.file} in IMPART_DATA)"
    return availability(source.hub[0], "dataset", what)
