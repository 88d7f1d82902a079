"""UltraDelta: entries in b-bit codes, dropped at random, fewer of them where dW varies more (Wang et al., NeurIPS 2025,
arXiv 2505.13563). It needs no data.

1. The matrices, by the standard deviation of dW, form thirds of about equal numbers of entries. With p the overall
   dropped share, the first third drops p + d, the second p, the last what keeps the mean at p; here d = step (1 - p).
2. code = round((dW - min) / (max - min) (2^b - 1)), one grid per matrix.
3. The same share is dropped inside of every distinct code.
4. What is kept is multiplied by gamma / (1 - p), the same for all matrices. The paper estimates gamma from trace norms;
   here it is a key, chosen on validation items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch

from impart.bit_plan import BITS
from impart.config import option
from impart.encodings import empty, uniform_entries
from impart.encodings.encoded import Encoded
from impart.encodings.headers import header_bytes
from impart.errors import InputError
from impart.masks import LEVELS
from impart.method import Matrix
from quantize.one_step import OneStepMethod


@dataclass(frozen=True, kw_only=True)
class UltraDelta(OneStepMethod):
    """A random share of the entries of dW in uniform codes, sized so that all stored bytes are 1 / CR_qt of 16 bit."""

    name: ClassVar = "ultradelta"
    label: ClassVar = "UltraDelta"

    compression_ratio_qt: float = option(16.0, low=1.0, help="16-bit size of the linear layers over their stored bytes")
    bits: int = option(4, help="bits of every kept entry", choices=BITS)
    step: float = option(
        0.2, help="d / (1 - p): by how much less than the mean the third of the matrices with the smallest standard "
        "deviation keeps", low=0.0, high=0.99
    )  # fmt: skip
    gamma: float = option(1.0, help="factor of 1 / (1 - p) in the rescaling", low=0.0)

    def settings(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(UltraDelta)}

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        return int(2 * sum(m * n for m, n in shapes.values()) / self.compression_ratio_qt)

    def mean_keep(self, shapes: Mapping[str, tuple[int, int]]) -> float:
        """1 - p, such that codes and headers of matrices of these shapes, by name, take their 1 / CR_qt."""
        cr, entries = self.compression_ratio_qt, sum(m * n for m, n in shapes.values())
        headers = sum(header_bytes(name, "uniform_entries", int(2 * m * n / cr)) for name, (m, n) in shapes.items())
        keep = 8 * (2 * entries / cr - headers) / (self.bits * entries)
        if keep * (1 - self.step) < 1 / LEVELS:
            raise InputError(
                f"compression_ratio_qt={cr:g} leaves no byte for entries of {self.bits} bits; take a lower ratio"
            )
        return min(1.0, keep)

    @property
    def needs_all(self) -> bool:
        return True

    def fitted(self, matrices: Sequence[Matrix]) -> "FittedUltraDelta":
        shapes = {matrix.name: matrix.shape for matrix in matrices}
        deviations = {matrix.name: float(matrix.dense().std(correction=0)) for matrix in matrices}
        keep = self.mean_keep(shapes)
        return FittedUltraDelta(**self.settings(), keep=keep, keeps=keep_ratios(deviations, shapes, keep, self.step))


@dataclass(frozen=True, kw_only=True)
class FittedUltraDelta(UltraDelta):
    """UltraDelta that knows how much every matrix keeps."""

    keep: float  # 1 - p
    keeps: Mapping[str, float]

    def fitted(self, matrices: Sequence[Matrix]) -> Self:
        return self

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        dW, name = matrix.dense(), matrix.name
        if not torch.count_nonzero(dW):
            return empty.write(matrix.shape)
        # departs from UltraDelta: a code's dropped share is p in the mean over seeds, not to the entry, so that the
        # mask follows from the seed; one that depends on the dropped codes would have to be stored
        factor, keep = self.gamma / self.keep, self.keeps[name]
        return uniform_entries.write(dW, self.bits, factor, name=name, keep_ratio=keep, seed=seed)


def keep_ratios(
    deviations: Mapping[str, float], shapes: Mapping[str, tuple[int, int]], keep: float, step: float
) -> dict[str, float]:
    """1 - p of every matrix, by name: thirds of the entries in the order of the standard deviations."""
    sizes = {name: m * n for name, (m, n) in shapes.items()}
    total, seen = sum(sizes.values()), 0
    found, last = {}, []
    for name in sorted(deviations, key=deviations.__getitem__):
        seen += sizes[name]
        if 3 * seen <= total:
            found[name] = keep * (1 - step)
        elif 3 * seen <= 2 * total:
            found[name] = keep
        else:
            last.append(name)
    spent = sum(found[name] * sizes[name] for name in found)
    rest = (keep * total - spent) / sum(sizes[name] for name in last)
    return {**found, **dict.fromkeys(last, min(1.0, rest))}
