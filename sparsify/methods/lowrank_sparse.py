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
from impart.masks import LEVELS
from impart.method import FactoredMatrix, Matrix
from sparsify.allocation import budget_bits
from sparsify.faces import SparseMethod
from sparsify.methods.lowrank import leading_triplets
from sparsify.shares import AUTO, Budget, best_alpha, budget_of, check_tail_scale

ENCODINGS = {"head": "svd", "tail": "sparse_entries"}


@dataclass(frozen=True, kw_only=True)
class LowRankSparse(SparseMethod):
    """`head` of the budget of m n / CR values for triplets in fp16, the rest for entries of the residual in fp16."""

    name: ClassVar = "lowrank_sparse"
    label: ClassVar = "LowRank+Sparse"
    needs_svd: ClassVar = False  # the tail is what the head leaves of dW itself

    head: float | str = option(
        AUTO,
        help="share of the budget for the leading triplets; 0 is DARE, 1 LowRank; auto: by the spectrum of each matrix",
        low=0,
        high=1,
        words=(AUTO,),
    )
    tail_scale: float | str = option(
        AUTO,
        help="a: factor of the tail after its rescaling by 1 / f; less than 1 trades bias for noise; auto: by f",
        low=0,
        high=1,
        words=(AUTO,),
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
        return self.head != 1

    def check(self, name: str, m: int, n: int) -> None:
        self.budget(name, m, n).check(name, f"compression_ratio={self.compression_ratio:g}")

    def budget(self, name: str, m: int, n: int) -> Budget:
        """Values or all bytes of an (m, n) matrix."""
        counted, total = self.accounting == "bytes", budget_bits(m, n, self.compression_ratio)
        if not counted:
            return Budget(m, n, total, 16 * (m + n), 16)
        return budget_of(name, m, n, total, 16 * (m + n) + 8 * svd.VALUE_BYTES, 16, ENCODINGS, self.head)

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        name, dW, budget = matrix.name, matrix.dense(), self.budget(matrix.name, *matrix.shape)
        if not torch.count_nonzero(dW):
            return empty.write(matrix.shape)
        if self.head == AUTO:
            factors = matrix.triplets(budget.rank(1.0))
            assert factors is not None  # dW is not zero
            matrix = FactoredMatrix(name, factors)
            _, r = budget.least_error(factors[1], float(dW.double().square().sum()), spread=1.0, error=0.0)
        else:
            r = budget.rank(float(self.head))
        head, keep = leading_triplets(matrix, r) if r else None, budget.keep(r)
        if head and (keep < 1 / LEVELS or self.head == 1):
            return head
        R = dW - head.dense(name) if head else dW
        a = best_alpha(keep, spread=1.0) if self.tail_scale == AUTO else float(self.tail_scale)
        tail = sparse_entries.write(R * a, keep, seed=seed, name=name)
        return head_and_tail.write(head, tail) if head else tail
