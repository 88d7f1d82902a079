"""Merges fine-tuned models of one base: task arithmetic, TIES or averaging, of deltas sparsified first or not.

Reads the base and any number of fine-tuned models, each a checkpoint or a delta artifact, one parameter at a time;
writes the merged checkpoint with tokenizer, config and a report.json to save_pth.

    python merge/merge.py --merge_method ta_0.5 --ptm_pth BASE --math_pth M --code_pth C --chat_pth H --save_pth OUT
    python merge/merge.py --merge_method ties_0.8_1.0 --ptm_pth BASE --model math=M:0.7 --model law=L --save_pth OUT
    python merge/merge.py --config configs/tiny/merging/pair.yaml merge_method=ta_0.6 save_pth=OUT
"""

import argparse
import logging
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as `python merge/merge.py`: import from the repository root, not from merge/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import impart  # noqa: F401 - which says what packages are missing

import torch

from impart import processes
from impart.architecture import is_experts, is_vocabulary, linear_names, weight_type
from impart.artifact import is_delta
from impart.card import Card
from impart.checkpoint import check_named, open_checkpoint
from impart.checkpoint_writer import CheckpointWriter
from impart.config import Parser, add_config_flags, add_run_flags, as_dict, describe
from impart.costs import Work, tell
from impart.coverage import of_checkpoint, of_delta
from impart.device import use_device
from impart.errors import InputError, run
from impart.matrices import slice_names, tensor_of
from impart.outputs import is_skipped, refuse_existing
from impart.pretrained import add_trust_flag
from impart.report import Report, progress, start_logging, table
from impart.weight_files import TensorSpec
from merge.compatibility import check_architectures, check_bases, check_distinct
from merge.method import MergeMethod, forms
from merge.models import CheckpointModel, DeltaModel, open_models
from merge.result import Models, gather_small_files, planned, write_config
from merge.settings import NAMED, Config, ModelEntry, described_masks, load_config, resolve
from merge.streaming import ParameterMerge, Part
from merge.tally import Tally
from merge.thresholds import threshold_of_blocks
from merge.vocabulary import Alignment

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    flags = parser().parse_intermixed_args(arguments)
    named = {key: getattr(flags, key) for key in ("merge_method", "ptm_pth", "save_pth", *(f"{n}_pth" for n in NAMED))}
    config = load_config(flags.config, named, flags.model, flags.overrides)
    method, entries = resolve(config)
    start_logging(flags.quiet, flags.verbose)
    device, report = use_device(flags.device, flags.threads), Report(as_dict(config))
    out = Path(config.save_pth)
    processes.refuse_several("merging")
    if is_skipped(out, flags.skip_existing):
        return
    refuse_existing(out, flags.overwrite, (config.ptm_pth, *(entry.path for entry in entries)))
    base, models = open_all(config, entries, out.absolute().parent, device)
    check_architectures(base, models)
    check_distinct(models, flags.force)
    check_masks(base, models)
    report.facts = {
        "method": str(method),
        "models": [stated(model) for model in models],
        "delta_ratios": check_bases(base, models, flags.force),
    }
    say_coverage(base, models)
    with tempfile.TemporaryDirectory() as small:
        alignment = gather_small_files(config, base, models, Path(small))
        plan = planned(config, base, models, alignment)
        if flags.dry_run:
            tell(out, merging_work(plan, models, base), device)
            return
        writer = CheckpointWriter(out, plan, overwrite=flags.overwrite)

        on_its_way = partial(
            parameter_merge, method=method, base=base, models=models, alignment=alignment, device=device
        )
        thresholds = model_thresholds(plan, method, base, models, on_its_way) if config.trim_scope == "model" else None
        tallies = {
            spec.name: merge_parameter(spec, method, base, models, on_its_way, writer, thresholds)
            for spec in progress(plan, what=str(method), unit="tensor")
        }
        write_config(config, plan, base, models, Path(small))
        text = summary(method, entries, tallies, report)
        report.write(Path(small) / "report.json")
        small_files = sorted(file for file in Path(small).rglob("*") if file.is_file())
        writer.finish(small_files, merge_card(out, method, models, base))
    print(f"{text}\nmerged model: {out}")


def merging_work(plan: Sequence[TensorSpec], models: Models, base: CheckpointModel) -> Work:
    """What a merge will have to do: an SVD of every matrix for every mask that reads triplets."""
    masks = [model.entry.premask.method for model in models if model.entry.premask is not None]
    shapes = [base.checkpoint.shape(name) for name in linear_names(base.checkpoint)]
    return Work(
        [(m, n) for m, n in shapes],
        written=sum(spec.nbytes for spec in plan),
        svds=sum(mask.needs_svd for mask in masks),
        masked=bool(masks),
        read=1 + len(models),
        merged=sum(math.prod(spec.shape) for spec in plan) * len(models),
    )


def merge_card(out: Path, method: MergeMethod, models: Models, base: CheckpointModel) -> Card:
    """The model card of the merge."""
    weights = {model.name: f"{model.source}, weight {model.entry.weight:g}" for model in models}
    masks = {f"mask of {model.name}": str(stated(model)["mask"]) for model in models if model.entry.premask is not None}
    return Card(
        title=out.name,
        text=f"A merge of {len(models)} fine-tuned models of one base by {method}.",
        base=[base.source, *(model.source for model in models)],
        relation="merge",
        tags=["merge"],
        facts={"method": str(method), **weights, **masks},
        library="transformers",
    )


def parser() -> Parser:
    parser = Parser(__doc__, epilog="\n\n".join([describe(Config), *described_masks()]))
    for key, text in (
        ("merge_method", forms()),
        ("ptm_pth", "base model"),
        *((f"{name}_pth", f"fine-tuned model for {name}, checkpoint or delta") for name in NAMED),
    ):
        parser.add_argument(f"--{key}", action=_Once, help=text)
    parser.add_argument("--save_pth", "--save_path", action=_Once, help="folder of the merged model")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="name=path[:weight]",
        help="one more fine-tuned model; may be given any number of times",
    )
    add_trust_flag(parser)
    add_run_flags(parser)
    add_config_flags(parser)
    return parser


class _Once(argparse.Action):
    """A flag that may be given once: a second --math_pth would drop the first model without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if (first := getattr(namespace, self.dest)) is not None:
            raise InputError(
                f"{option_string} is given twice, as {first} and as {values}, and the first would be lost; give it once"
                + (f", and the other model as --model NAME={values}" if self.dest.removesuffix("_pth") in NAMED else "")
            )
        setattr(namespace, self.dest, values)


def open_all(
    config: Config, entries: Sequence[ModelEntry], scratch: Path, device: torch.device
) -> tuple[CheckpointModel, Models]:
    """The base and the models; of their weights only samples are read yet."""
    check_named(config.ptm_pth, *(entry.path for entry in entries if not is_delta(entry.path)))
    checkpoint = open_checkpoint(config.ptm_pth)
    base = CheckpointModel(checkpoint, checkpoint, ModelEntry("base", config.ptm_pth, 1.0, None), scratch, device)
    return base, open_models(entries, checkpoint, scratch, device)


def check_masks(base: CheckpointModel, models: Models) -> None:
    """InputError for a mask whose budget some matrix cannot meet, before the first SVD."""
    for mask in (model.entry.premask for model in models if model.entry.premask is not None):
        for name in linear_names(base.checkpoint):
            mask.check(name, base.shape(name))


def say_coverage(base: CheckpointModel, models: Models) -> None:
    """Of every model that is sparsified, how much of it is, and how much is merged whole."""
    for model in models:
        if isinstance(model, DeltaModel):
            of_delta(model.delta).say(f"{model.name}: ")
        elif model.entry.premask is not None:
            of_checkpoint(model.checkpoint, linear_names(base.checkpoint)).say(f"{model.name}: ")


def stated(model: CheckpointModel | DeltaModel) -> dict:
    """A model's entry in the report."""
    mask = model.entry.premask
    return {
        "name": model.name,
        "source": model.source,
        "weight": model.entry.weight,
        "kind": "delta" if isinstance(model, DeltaModel) else "checkpoint",
        "identity": model.identity,
        "mask": None if mask is None else {"kind": mask.method.name, **mask.method.settings(), "seed": mask.seed},
    }


def is_merged(spec: TensorSpec) -> bool:
    """Whether a parameter is merged at all: whole numbers and single ones stay the base's."""
    return spec.dtype.is_floating_point and bool(spec.shape)


def matrices_in(spec: TensorSpec, base: CheckpointModel) -> list[TensorSpec]:
    """What is merged by itself: the parameter, or every expert's matrix in it."""
    if not is_experts(spec.name, spec.shape):
        return [spec]
    places = {name: base.checkpoint.place(name) for name in slice_names(spec.name, spec.shape[0])}
    return [TensorSpec(name, place.shape(spec.shape), spec.dtype) for name, place in places.items()]


def parameter_merge(
    spec: TensorSpec,
    method: MergeMethod,
    base: CheckpointModel,
    models: Models,
    alignment: Alignment | None,
    device: torch.device,
) -> ParameterMerge:
    """Every model's share in one parameter, or in one matrix of a parameter."""
    maps: Mapping = alignment.maps if alignment is not None and is_vocabulary(spec.name) else {}
    parts = []
    for model in models:
        holder = model if tensor_of(spec.name) in model else base  # of a head that the model lacks
        parts.append(Part(model.name, holder.open(spec.name), maps.get(holder.name), model.entry.weight))
    return ParameterMerge(Part("base", base.open(spec.name), maps.get("base")), parts, spec.shape, method, device)


def model_thresholds(
    plan: Sequence[TensorSpec],
    method: MergeMethod,
    base: CheckpointModel,
    models: Models,
    on_its_way: Callable[[TensorSpec], ParameterMerge],
) -> list[float]:
    """The magnitude below which each model's task vector is trimmed, over all parameters together.

    Reads every parameter twice before any is merged; no more of them is in memory than one.
    """
    merged = [part for spec in plan if is_merged(spec) for part in matrices_in(spec, base)]
    count = sum(math.prod(spec.shape) for spec in merged)

    def deltas(position: int) -> Iterator[torch.Tensor]:
        for spec in progress(merged, what=f"what to trim of {models[position].name}", unit="tensor"):
            yield from on_its_way(spec).deltas(position)

    share = method.trimmed_share
    return [threshold_of_blocks(partial(deltas, position), count, share) for position in range(len(models))]


def merge_parameter(
    spec: TensorSpec,
    method: MergeMethod,
    base: CheckpointModel,
    models: Models,
    on_its_way: Callable[[TensorSpec], ParameterMerge],
    writer: CheckpointWriter,
    thresholds: Sequence[float] | None,
) -> Tally | None:
    """Merges one parameter and writes it; None where it stays the base's."""
    if not is_merged(spec):
        writer.add(spec.name, base.checkpoint.tensor(spec.name).to(spec.dtype))
        return None
    merged, tallies = torch.empty(spec.shape, dtype=spec.dtype), []
    for part in matrices_in(spec, base):
        view = base.checkpoint.place(part.name).of(merged)
        tallies.append(on_its_way(part).run(view, thresholds))
    tally = Tally.combined(tallies)
    if broken := tally.broken():
        source = {"base": base.source, **{model.name: model.source for model in models}}[broken[0]]
        raise InputError(
            f"{spec.name} of {broken[0]} ({source}) holds NaN or Inf; fetch the checkpoint again or repair the tensor"
        )
    if merged.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(merged)):
        raise InputError(
            f"{spec.name}: {method} gives values beyond the range of {merged.dtype}; take a smaller lambda or "
            "smaller weights, or dtype=bfloat16 or float32"
        )
    writer.add(spec.name, merged)
    return tally


def summary(
    method: MergeMethod, entries: Sequence[ModelEntry], tallies: Mapping[str, Tally | None], report: Report
) -> str:
    """What was merged and a table by tensor type, which is also left in the report, with one row per parameter."""
    kinds: dict[str, list[Tally]] = {}
    for name, tally in tallies.items():
        if tally is not None:
            kinds.setdefault(weight_type(name), []).append(tally)
            report.rows.append({"name": name, **tally.rows()})
    by_type = {kind: Tally.combined(group).rows() for kind, group in kinds.items()}
    report.facts["by_type"] = by_type
    lines = []
    for kind, row in by_type.items():
        norms = [row["models"][entry.name]["delta_norm"] for entry in entries]
        zeros = statistics.fmean(of_model["zeros"] for of_model in row["models"].values())
        lines.append(
            [
                kind,
                row["entries"],
                *(f"{norm:.4g}" for norm in (*norms, row["merged_delta_norm"])),
                f"{zeros:.1%}",
                f"{row['sign_conflicts']:.1%}",
            ]
        )
    header = ["norms of the deltas", "entries", *(entry.name for entry in entries), "merged", "zeros", "conflicts"]
    return "\n".join(
        [
            f"{method} of {', '.join(map(with_settings, entries))}",
            table(lines, header),
            "zeros: of the deltas as they were merged, mean over models; conflicts: entries where signs differ",
        ]
    )


def with_settings(entry: ModelEntry) -> str:
    """`math x 0.7 (dare, sparsity 0.9)`: a model with its weight and mask."""
    mask = (
        ""
        if entry.premask is None
        else f" ({entry.premask.method.name}, sparsity {1 - 1 / entry.premask.method.compression_ratio:.3g})"
    )
    return entry.name + ("" if entry.weight == 1 else f" x {entry.weight:g}") + mask


if __name__ == "__main__":
    run(main)
