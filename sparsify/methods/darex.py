"""DAREx-q: DARE with kept entries divided by a q of one's choice (Deng et al. 2024, arXiv 2410.09344).

dW^ = xi * dW / q with xi ~ Bernoulli(1 - p), entry by entry from the seed, and 1 - p <= q <= 1. q = 1 - p is DARE,
whose mean is dW; a larger q gives up part of that mean for less noise, which wins at high p. The paper takes the q with
the best score on validation items, or with the smallest change of the last layer's output on unlabelled text, which
eval/closeness.py measures.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from impart.config import option
from impart.encodings import empty, sparse_entries
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.method import Matrix
from sparsify.faces import SparseMethod


@dataclass(frozen=True, kw_only=True)
class DareX(SparseMethod):
    """Every entry of dW is kept with probability 1 / CR and divided by q."""

    name: ClassVar = "darex"
    label: ClassVar = "DAREx-q"
    needs_svd: ClassVar = False

    q: float | None = option(
        None, help="what kept entries are divided by, from 1 / CR to 1; default: 1 / CR, which is DARE", high=1.0
    )

    def resolved(self) -> Self:
        if self.q is not None and self.q * self.compression_ratio < 1:
            raise InputError(
                f"q={self.q:g} is below 1 / compression_ratio = {1 / self.compression_ratio:g}, with which the mean is "
                "dW already; take that or more"
            )
        return self

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        dW, keep = matrix.dense(), 1.0 / self.compression_ratio
        if not torch.count_nonzero(dW):
            return empty.write(matrix.shape)
        if self.q is None:
            return sparse_entries.write(dW, keep, seed=seed, name=matrix.name)
        return sparse_entries.write(dW / self.q, keep, seed=seed, name=matrix.name, rescale=False)
