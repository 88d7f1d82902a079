"""What flows through the layers during calibration: the current layer's inputs, and the Hessians gathered from them."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from impart.errors import InputError
from quantize.streamed import Call, Stage, StreamedDecoder

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Gathered:
    """H = 2 / tokens of the text * X X^T (n, n) in fp32 of one input X, and the number of tokens that reached it."""

    H: Tensor
    tokens: int = 0


class Activations:
    """Inputs of the current layer in batches: on the decoder's device while they fit there, else in main memory."""

    def __init__(self, decoder: StreamedDecoder, sequences: Tensor, batch: int):
        self._decoder, self._spilled = decoder, False
        self._inputs: list[Tensor] = []
        self._calls: dict[int, list[Call]] = {}  # sequences per batch -> arguments of every layer
        self.tokens = sequences.numel()
        for ids in sequences.split(batch):
            hidden, self._calls[len(ids)] = self.with_room(partial(decoder.record, ids))
            self._inputs.append(self._kept(hidden))

    def stages(self, layer: int, names: Sequence[str]) -> list[Stage]:
        """The matrices of the layer that the text reaches, by distinct input, in the order of their use."""
        return self.with_room(partial(self._stages, layer, names))

    def hessians(self, layer: int, names: Sequence[str]) -> dict[str, Gathered]:
        """The Hessian of the inputs of each of these matrices, in one pass; of an expert's, from its tokens."""
        return self.with_room(partial(self._hessians, layer, names))

    def advance(self, layer: int) -> None:
        """The layer's outputs become the inputs of the next one."""
        for index in range(len(self._inputs)):
            self._inputs[index] = self._kept(self.with_room(partial(self._output, layer, index)))

    def with_room(self, work: Callable[[], T]) -> T:
        """The work's result; when the GPU is full, once more after the activations went to main memory."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                if self._spilled:
                    raise InputError(
                        "the GPU's memory is too small even with the activations in main memory; take a "
                        "smaller batch, fewer tokens per sequence (seqlen) or --device cpu"
                    ) from error
            self._spilled = True
            log.warning("the GPU is full: the calibration activations go to main memory, which is slower")
            self._inputs = [hidden.cpu() for hidden in self._inputs]
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _stages(self, layer: int, names: Sequence[str]) -> list[Stage]:
        first = self._inputs[0]
        return self._decoder.stages(layer, names, self._used(first), self._calls[len(first)][layer])

    def _hessians(self, layer: int, names: Sequence[str]) -> dict[str, Gathered]:
        found: dict[str, Gathered] = {}
        for hidden in self._inputs:
            call = self._calls[len(hidden)][layer]
            for name, x in self._decoder.inputs(layer, names, self._used(hidden), call):
                if name not in found:
                    found[name] = Gathered(torch.zeros(x.shape[1], x.shape[1], device=x.device))
                _add_gram(found[name].H, x, 2 / self.tokens)
                found[name].tokens += len(x)
        return found

    def _output(self, layer: int, index: int) -> Tensor:
        hidden = self._inputs[index]
        return self._decoder.run(layer, self._used(hidden), self._calls[len(hidden)][layer])

    def _used(self, hidden: Tensor) -> Tensor:
        return hidden.to(self._decoder.device)

    def _kept(self, hidden: Tensor) -> Tensor:
        return hidden.cpu() if self._spilled else hidden


def _add_gram(H: Tensor, x: Tensor, scale: float) -> None:
    """H (n, n) += scale * x^T x of inputs (tokens, n), summed in fp32.

    A GPU multiplies 16-bit inputs as they are, 15 times as fast: the product of two of them is exact in fp32.
    """
    if x.is_cuda and x.dtype.itemsize == 2:
        H.add_(torch.mm(x.T, x, out_dtype=torch.float32), alpha=scale)
    else:
        x = x.float()
        H.addmm_(x.T, x, alpha=scale)
