"""Low rank plus sparse: leading triplets of dW, and a rescaled random sample of what they leave.

dW^ = L + a xi * R / f, where L is the best approximation of dW of rank r, R = dW - L, xi ~ Bernoulli(f) entry by entry
from the seed, as DARE's, and a is tail_scale. The mean over the seeds is L + a R: dW itself for a = 1. `head` moves the
budget from DARE (0) to LowRank (1).
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from impart.config import option
from impart.encodings import empty, head_and_tail, sparse_entries, svd
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.masks import LEVELS
from impart.method import Matrix
from sparsify.allocation import budget_bits, check_tail_scale, head_and_tail_shares
from sparsify.faces import SparseMethod
from sparsify.methods.lowrank import leading_triplets

ENCODINGS = {"head": "svd", "tail": "sparse_entries"}


@dataclass(frozen=True, kw_only=True)
class LowRankSparse(SparseMethod):
    """`head` of the budget of m n / CR values for triplets in fp16, the rest for entries of the residual in fp16."""

    name: ClassVar = "lowrank_sparse"
    label: ClassVar = "LowRank+Sparse"
    needs_svd: ClassVar = False  # the tail is what the head leaves of dW itself

    head: float = option(0.5, help="share of the budget for the leading triplets; 0 is DARE, 1 LowRank", low=0, high=1)
    tail_scale: float = option(
        1.0, help="a: factor of the tail after its rescaling by 1 / f; less than 1 trades bias for noise", low=0, high=1
    )
    accounting: str = option(
        "paper",
        choices=("paper", "bytes"),
        help="paper: the kept values alone are 1 / CR; bytes: so is every stored byte of the linear layers",
    )

    def resolved(self) -> Self:
        check_tail_scale(self.tail_scale)
        return self

    @property
    def seeded(self) -> bool:
        return self.head < 1

    def check(self, name: str, m: int, n: int) -> None:
        r, keep = self.split(name, m, n)
        if r == 0 and keep < 1 / LEVELS:
            raise InputError(
                f"{name} ({m} x {n}): compression_ratio={self.compression_ratio:g} leaves no byte for values "
                f"(accounting: {self.accounting}); take a lower ratio"
            )

    def split(self, name: str, m: int, n: int) -> tuple[int, float]:
        """Rank of the head, and the share of the entries that the tail keeps."""
        counted, budget = self.accounting == "bytes", budget_bits(m, n, self.compression_ratio)
        header = 8 * head_and_tail.expected_header_bytes(name, ENCODINGS, int(budget / 8), self.head) * counted
        return head_and_tail_shares(m, n, budget - header, self.head, 16 * (m + n) + 8 * svd.VALUE_BYTES * counted, 16)

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        name, dW = matrix.name, matrix.dense()
        r, keep = self.split(name, *matrix.shape)
        if not torch.count_nonzero(dW):
            return empty.write(matrix.shape)
        head = leading_triplets(matrix, r) if r else None
        if head and keep < 1 / LEVELS:
            return head
        R = dW - head.dense(name) if head else dW
        tail = sparse_entries.write(R * self.tail_scale, keep, seed=seed, name=name)
        return head_and_tail.write(head, tail) if head else tail
