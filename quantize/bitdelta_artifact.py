"""The BitDelta artifact: both models, checked -> scales -> signs, shard by shard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impart.architecture import linear_names, select_matrices
from impart.artifact import Delta
from impart.artifact_writer import DeltaWriter, model_facts
from impart.checkpoint import Checkpoint, open_checkpoint
from impart.comparison import Comparison, check_comparable, compare
from impart.encodings import empty
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.report import Report, progress
from quantize.bitdelta import LOWEST_RATIO, bitdelta, distilled_scales
from quantize.calibration import digest
from quantize.settings import Config


def write_bitdelta(
    path: str | Path,
    config: Config,
    finetuned: Checkpoint,
    sequences: Tensor | None,
    device: torch.device,
    report: Report,
    overwrite: bool = False,
) -> Delta | None:
    """Signs and scales of every matrix; the scales are distilled when there are calibration `sequences`."""
    if config.baseModel is None:
        raise InputError("baseModel is missing: BitDelta takes the delta between it and the fine-tuned model")
    cr = config.compression_ratio_qt or LOWEST_RATIO
    if cr < LOWEST_RATIO:
        raise InputError(
            f"compression_ratio_qt={cr:g}: BitDelta takes one bit of 16 per entry, which is a ratio of "
            f"{LOWEST_RATIO:g}; take that or more"
        )
    base = open_checkpoint(config.baseModel)
    matrices = select_matrices(linear_names(finetuned), finetuned.source)
    check_comparable(base, finetuned, matrices)
    pair = compare(base, finetuned, matrices)
    settings: dict[str, Any] = {"compression_ratio_qt": cr, "distill_steps": config.distill_steps}
    if sequences is not None:
        settings |= {
            "distill_lr": config.distill_lr,
            "nsamples": config.nsamples,
            "seqlen": config.seqlen,
            "batch": config.batch,
            "calibration_tokens": digest(sequences),
        }
    head = {
        "kind": "quantized",
        "method": "bitdelta",
        "settings": settings,
        "seed": config.seed,
        "base": model_facts(base),
        "finetuned": model_facts(finetuned),
    }
    entries = sum(m * n for m, n in map(finetuned.shape, matrices))
    extra_bytes = sum(finetuned.spec(name).nbytes for name in pair.extras)
    writer = DeltaWriter(
        path,
        head,
        dtypes={name: finetuned.dtype(name) for name in matrices},
        extras=pair.extras,
        dropped=pair.dropped,
        needed_bytes=int(2.1 * entries / cr) + extra_bytes,
        overwrite=overwrite,
    )
    scales: Mapping[str, float] = {}
    if sequences is not None and writer.pending():
        scales = trained_scales(config, pair, cr, sequences, device)
    for shard in progress(writer.pending(), what="bitdelta", unit="shard"):
        encoded = {name: signs_of(pair, name, cr, config.seed, device, scales.get(name)) for name in shard.matrices}
        rows = [{"name": name, **matrix.facts} for name, matrix in encoded.items()]
        writer.write(shard, encoded, {name: finetuned.tensor(name) for name in shard.extras}, rows)
    return writer.finish(finetuned.companions(), report)


def signs_of(
    pair: Comparison, name: str, cr: float, seed: int, device: torch.device, mu: float | None = None
) -> Encoded:
    if name in pair.unchanged:
        return empty.write(pair.base.shape(name))
    return bitdelta(pair.delta(name, device), name=name, cr=cr, seed=seed, mu=mu)


def trained_scales(
    config: Config, pair: Comparison, cr: float, sequences: Tensor, device: torch.device
) -> Mapping[str, float]:
    signs = {name: signs_of(pair, name, cr, config.seed, device) for name in pair.matrices}
    dtype = pair.finetuned.model_dtype() if device.type == "cuda" else torch.float32
    return distilled_scales(
        pair.base,
        pair.finetuned,
        signs,
        sequences,
        steps=config.distill_steps,
        lr=config.distill_lr,
        batch=config.batch,
        device=device,
        dtype=dtype,
    )
