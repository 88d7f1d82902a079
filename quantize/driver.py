"""Layer by layer through a model: gather the Hessians of a layer's inputs, quantize its matrices, hand the outputs on.

The calibrated model is the fine-tuned one with base + delta for weights. Within a layer the matrices go stage by stage
(query, key and value; output; gate and up; down), each with the inputs that the already quantized ones before it
produce. A stage costs one pass through the part of the layer before it, one Hessian and one Cholesky factor.
"""

import logging
import time
from collections.abc import Mapping, Sequence
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
from impart.matrices import tensor_of
from impart.reconstruct import rebuilt_weight
from impart.report import progress
from quantize.activations import Activations, Gathered
from quantize.matrix import Rule, quantize_matrix, safe_inverse
from quantize.sparse_gptq import Inverse, nearest
from quantize.streamed import StreamedDecoder

log = logging.getLogger(__name__)
LEAST_TOKENS = 0.25  # of an expert, for each input; with fewer, most directions of its Hessian are unknown


class Weights:
    """Where the calibrated model's weights come from."""

    def __init__(self, base: Checkpoint, finetuned: Checkpoint, delta: Delta, device: torch.device):
        self.delta, self._base, self._finetuned, self._device = delta, base, finetuned, device

    def plain(self, name: str) -> Tensor:
        """A parameter outside the compressed set: the fine-tuned model's."""
        return self._finetuned.tensor(name)

    def sparse(self, name: str) -> Encoded:
        return self.delta.stored(name, self._device)

    def fill(self, decoder: StreamedDecoder, layer: int, encoded: Mapping[str, Encoded]) -> None:
        """Gives a layer its weights: the fine-tuned model's, and base + dW of the encoded matrices."""
        tensors = decoder.parameter_names(layer)
        matrices = {name: self.with_delta(name, encoded[name]) for name in encoded if tensor_of(name) in tensors}
        decoder.load(layer, {name: matrices.pop(name) if name in matrices else self.plain(name) for name in tensors})
        decoder.load(layer, matrices)

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
            if layer < len(decoder.layers):
                weights.fill(decoder, layer, encoded)
            if shard is not None and done is None:
                work = _LayerWork(decoder, weights, activations, layer, encoded, rule)
                work.quantize(true_sequential)
                writer.write(
                    shard, work.quantized(), {name: weights.delta.extra(name) for name in shard.extras}, work.rows
                )
            if layer < min(last, len(decoder.layers)):
                activations.advance(layer)
            if layer < len(decoder.layers):
                decoder.unload(layer)
    rest = by_layer[None]
    if rest.file in pending:
        quantized = [_to_nearest(name, weights.sparse(name), rule) for name in rest.matrices]
        matrices = {name: encoded for name, (encoded, _) in zip(rest.matrices, quantized, strict=True)}
        writer.write(
            rest, matrices, {name: weights.delta.extra(name) for name in rest.extras}, [row for _, row in quantized]
        )


def _layer(shard: Shard) -> int | None:
    return layer_of((*shard.matrices, *shard.extras, "")[0])


class _LayerWork:
    """The matrices of one layer on their way to codes; the layer holds what is quantized already."""

    def __init__(
        self,
        decoder: StreamedDecoder,
        weights: Weights,
        activations: Activations,
        layer: int,
        sparse: Mapping[str, Encoded],
        rule: Rule,
    ):
        self._decoder, self._weights, self._activations = decoder, weights, activations
        self._layer, self._sparse, self._rule = layer, sparse, rule
        self._found: dict[str, Encoded] = {}
        self.rows: list[dict] = []

    def quantized(self) -> dict[str, Encoded]:
        """The matrices in their order."""
        return {name: self._found[name] for name in self._sparse}

    def quantize(self, true_sequential: bool) -> None:
        """Stage by stage; with `true_sequential` each sees what the quantized ones before it produce."""
        runs = self._layer < len(self._decoder.layers)  # a tower for images may have more layers than the decoder
        stages = self._activations.stages(self._layer, list(self._sparse)) if runs else []
        gathered: dict[str, Gathered] = {}
        if stages and not true_sequential:
            gathered = self._activations.hessians(self._layer, [group[0] for stage in stages for group in stage])
        for stage in stages:
            if true_sequential:
                gathered = self._activations.hessians(self._layer, [group[0] for group in stage])
            few = [group for group in stage if not self._by_text(group, gathered.pop(group[0], None))]
            if few:
                more = f" and {len(few) - 1} experts more" if len(few) > 1 else ""
                log.warning("%s%s: too few calibration tokens for so many inputs; rounded to nearest", few[0][0], more)
            for group in few:
                self._without_text(group)
            held = {name: self._weights.with_delta(name, self._found[name]) for group in stage for name in group}
            self._decoder.load(self._layer, held)
        unseen = [name for name in self._sparse if name not in self._found]
        if unseen:
            kinds = ", ".join(dict.fromkeys(map(weight_type, unseen)))
            log.warning(
                "layer %d: what goes into %s is not seen by calibration; rounded to nearest", self._layer, kinds
            )
            self._without_text(unseen)

    def _by_text(self, group: Sequence[str], gathered: Gathered | None) -> bool:
        """Quantizes matrices of one input by its Hessian; False where too few tokens have reached it."""
        if gathered is None or gathered.tokens < min(LEAST_TOKENS * len(gathered.H), self._activations.tokens):
            return False
        inverse = self._activations.with_room(partial(safe_inverse, gathered.H, self._rule, group))
        if inverse.dead:
            log.warning(
                "%s: %d of %d inputs are never active on the calibration text; their weights are rounded to nearest",
                ", ".join(group),
                inverse.dead,
                len(gathered.H),
            )
        for name in group:
            self._quantize_one(name, gathered.H, inverse)
        return True

    def _without_text(self, names: Sequence[str]) -> None:
        """Rounds to nearest."""
        for name in names:
            work = partial(_to_nearest, name, self._sparse[name], self._rule)
            self._found[name], row = self._activations.with_room(work)
            self.rows.append(row)

    def _quantize_one(self, name: str, H: Tensor, inverse: Inverse) -> None:
        started = time.perf_counter()
        work = partial(quantize_matrix, name, self._sparse[name], H, inverse, self._rule)
        self._found[name], facts = self._activations.with_room(work)
        self.rows.append(
            {
                "name": name,
                "seconds": round(time.perf_counter() - started, 4),
                "dead_inputs": inverse.dead,
                **{key: round(value, 6) if isinstance(value, float) else value for key, value in facts.items()},
                **self._found[name].facts,
            }
        )
        log.info("layer %d %s: %s", self._layer, weight_type(name), _told(facts))


def _to_nearest(name: str, sparse: Encoded, rule: Rule) -> tuple[Encoded, dict]:
    """A matrix whose inputs calibration does not see, rounded to nearest, and its row of the report.

    departs from the paper, which leaves embedding and head whole: an embedding has no inputs to weigh its errors by.
    """
    H = torch.eye(sparse.shape[1], device=sparse.device)
    encoded, facts = quantize_matrix(name, sparse, H, nearest(H, rule.act_order), rule)
    return encoded, {"name": name, **facts, **encoded.facts}


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
