"""DARE: entries of dW are kept at random with one probability and rescaled (Yu et al. 2024, arXiv 2311.03099)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from impart.bit_plan import BITS
from impart.config import option
from impart.encodings import empty, sparse_entries
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.masks import LEVELS
from impart.method import Matrix
from sparsify.faces import QuantizedMethod, SparseMethod, with_sizes


@dataclass(frozen=True, kw_only=True)
class Dare(SparseMethod):
    """Every entry of dW is kept with probability 1 / CR and multiplied by CR."""

    name: ClassVar = "dare"
    label: ClassVar = "DARE"
    needs_svd: ClassVar = False

    rescale: bool = option(True, help="multiply kept entries by 1 / (1 - p)")

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        dW = matrix.dense()
        if not torch.count_nonzero(dW):
            return empty.write(matrix.shape)
        keep = 1.0 / self.compression_ratio
        return sparse_entries.write(dW, keep, seed=seed, name=matrix.name, rescale=self.rescale)


@dataclass(frozen=True, kw_only=True)
class DareQt(QuantizedMethod):
    """What DARE leaves to quantize: as many entries as 1 / CR_qt of dW in 16 bit holds at their bits."""

    name: ClassVar = "dare"
    label: ClassVar = "DARE-Qt"
    needs_svd: ClassVar = False

    bits: int = option(2, help="bits of every kept entry", choices=BITS)

    def check(self, name: str, m: int, n: int) -> None:
        self.keep_ratio(name, m, n)

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        dW, (m, n), name = matrix.dense(), matrix.shape, matrix.name
        if not torch.count_nonzero(dW):
            return empty.write((m, n))
        encoded = sparse_entries.write(dW, self.keep_ratio(name, m, n), seed=seed, name=name)
        kept = encoded.facts["kept"][0]
        return with_sizes(encoded, *self.sized.entries_bytes(name, m, n, self.bits, kept, self.compression_ratio_qt))

    def keep_ratio(self, name: str, m: int, n: int) -> float:
        """The share of entries that is kept; InputError when not even 1 of 65536 fits."""
        keep = self.sized.entries_keep_ratio(name, m, n, self.bits, self.compression_ratio_qt)
        if keep < 1 / LEVELS:
            raise InputError(
                f"{name} ({m} x {n}): compression_ratio_qt={self.compression_ratio_qt:g} leaves no byte for entries of "
                f"{self.bits} bits after their grids (accounting: {self.accounting}); take a lower ratio or a larger "
                "groupsize"
            )
        return keep
