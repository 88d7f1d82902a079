"""LowRank: the leading singular triplets, dense."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from impart.encodings import empty, svd
from impart.encodings.encoded import Encoded
from impart.method import Matrix
from sparsify.allocation import lowrank_rank
from sparsify.faces import SparseMethod


@dataclass(frozen=True, kw_only=True)
class LowRank(SparseMethod):
    """The leading floor(m n / (CR (m + n))) triplets, at least one, in fp16."""

    name: ClassVar = "lowrank"
    label: ClassVar = "LowRank"
    usable_as_mask: ClassVar = False  # nothing is masked

    @property
    def seeded(self) -> bool:
        return False

    def rank(self, name: str, m: int, n: int) -> int:
        return min(m, n, lowrank_rank(m, n, self.compression_ratio))

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        return leading_triplets(matrix, self.rank(matrix.name, *matrix.shape))


def leading_triplets(matrix: Matrix, rank: int) -> Encoded:
    """The best approximation of dW of that rank, or of its own where that is lower; `empty` where dW is zero."""
    triplets = matrix.triplets(rank)
    if triplets is None:
        return empty.write(matrix.shape)
    r = min(rank, int(torch.count_nonzero(triplets[1])))
    U, s, V = (part[..., :r] for part in triplets)
    return svd.write(U, s, V, torch.float16)
