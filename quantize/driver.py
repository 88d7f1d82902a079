"""Layer by layer through a model: gather the Hessians of a layer's inputs, quantize its matrices, hand the outputs on.

The calibrated model is the fine-tuned one with base + delta for weights. Within a layer the matrices go stage by stage
(query, key and value; output; gate and up; down), each with the inputs that the already quantized ones before it
produce. A stage costs one pass through the part of the layer before it, one Hessian and one Cholesky factor.
"""

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from impart.architecture import layer_of, weight_type
from impart.artifact import Delta
from impart.artifact_writer import DeltaWriter, Shard
from impart.checkpoint import Checkpoint
from impart.encodings.encoded import Encoded
from impart.reconstruct import rebuilt_weight
from impart.report import progress
from quantize.activations import Activations
from quantize.matrix import Rule, quantize_matrix, safe_inverse
from quantize.streamed import StreamedDecoder

log = logging.getLogger(__name__)


class Weights:
    """Where the calibrated model's weights come from."""

    def __init__(self, base: Checkpoint, finetuned: Checkpoint, delta: Delta, device: torch.device):
        self.delta, self._base, self._finetuned, self._device = delta, base, finetuned, device

    def plain(self, name: str) -> Tensor:
        """A parameter outside the compressed set: the fine-tuned model's."""
        return self._finetuned.tensor(name)

    def sparse(self, name: str) -> Encoded:
        return self.delta.stored(name, self._device)

    def with_delta(self, name: str, encoded: Encoded) -> Tensor:
        """base + dW in the checkpoint's dtype, the weight that delta.py --merge will write."""
        dW = encoded.to(self._device).dense(name).to(self._device)
        return rebuilt_weight(self._base, name, dW, self.delta.dtype(name))


def quantize_layers(
    decoder: StreamedDecoder,
    weights: Weights,
    writer: DeltaWriter,
    sequences: Tensor,
    rule: Rule,
    *,
    true_sequential: bool,
    batch: int,
) -> None:
    """Fills the writer with every matrix of the delta, quantized, and with its extras; complete shards are kept."""
    pending = {shard.file for shard in writer.pending()}
    by_layer = {_layer(shard): shard for shard in writer.shards}
    last = max((layer for layer, shard in by_layer.items() if layer is not None and shard.file in pending), default=-1)
    activations = Activations(decoder, sequences, batch) if last >= 0 else None
    with logging_redirect_tqdm():
        for layer in progress(range(last + 1), what="quantizing", unit="layer"):
            assert activations is not None  # there is a layer to calibrate
            shard = by_layer.get(layer)
            done = writer.written(shard) if shard is not None and shard.file not in pending else None
            names = list(shard.matrices) if shard is not None else []
            encoded = done or {name: weights.sparse(name) for name in names}
            decoder.load(
                layer,
                {
                    name: weights.with_delta(name, encoded[name]) if name in encoded else weights.plain(name)
                    for name in decoder.parameter_names(layer)
                },
            )
            if shard is not None and done is None:
                encoded, rows = _quantize_layer(decoder, weights, activations, layer, encoded, rule, true_sequential)
                writer.write(shard, encoded, {name: weights.delta.extra(name) for name in shard.extras}, rows)
            if layer < last:
                activations.advance(layer)
            decoder.unload(layer)
    rest = by_layer[None]
    if rest.file in pending:
        writer.write(rest, {}, {name: weights.delta.extra(name) for name in rest.extras})


def _layer(shard: Shard) -> int | None:
    return layer_of((*shard.matrices, *shard.extras, "")[0])


def _quantize_layer(
    decoder: StreamedDecoder,
    weights: Weights,
    activations: Activations,
    layer: int,
    sparse: Mapping[str, Encoded],
    rule: Rule,
    true_sequential: bool,
) -> tuple[dict[str, Encoded], list[dict]]:
    """The quantized matrices of one layer, which the layer then holds, and their rows of the report."""
    stages, found, rows = activations.stages(layer, list(sparse)), {}, []
    hessians = {} if true_sequential else activations.hessians(layer, [stage[0] for stage in stages])
    for stage in stages:
        H = hessians.pop(stage[0], None)
        if H is None:
            H = activations.hessians(layer, stage[:1])[stage[0]]
        inverse = activations.with_room(partial(safe_inverse, H, rule, stage))
        if inverse.dead:
            log.warning(
                "%s: %d of %d inputs are never active on the calibration text; their weights are rounded to nearest",
                ", ".join(stage),
                inverse.dead,
                len(H),
            )
        for name in stage:
            started = time.perf_counter()
            found[name], facts = activations.with_room(partial(quantize_matrix, name, sparse[name], H, inverse, rule))
            decoder.load(layer, {name: weights.with_delta(name, found[name])})
            seconds = time.perf_counter() - started
            rows.append(
                {
                    "name": name,
                    "seconds": round(seconds, 4),
                    "dead_inputs": inverse.dead,
                    **{key: round(value, 6) if isinstance(value, float) else value for key, value in facts.items()},
                    **found[name].facts,
                }
            )
            log.info("layer %d %s: %s", layer, weight_type(name), _told(facts))
    return {name: found[name] for name in sparse}, rows


def _told(facts: Mapping[str, Any]) -> str:
    """error 0.213 (8 bit 0.004, 3 bit 0.120, 2 bit 0.310), inner product 0.954"""
    if "error" not in facts:
        return "no error to measure"
    parts = [
        f"{key.removeprefix('error_').removesuffix('bit')} bit {value:.3f}"
        for key, value in facts.items()
        if key.startswith("error_")
    ]
    of_parts = f" ({', '.join(parts)})" if parts else ""
    return f"error {facts['error']:.4f}{of_parts}, inner product {facts['inner_product']:.3f}"
