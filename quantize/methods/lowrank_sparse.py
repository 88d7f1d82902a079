"""Low rank plus signs: leading triplets of dW in few bits, and signs of a random sample of what they leave.

dW^ = L + a mean|R| sign(R) xi / f, where L is the best approximation of dW of rank r, in b bits by fitted grids,
R = dW - L, xi ~ Bernoulli(f) entry by entry from the seed, and a is tail_scale. A matrix takes r (b (m + n) + 32) bits,
one bit for each of its f m n signs, and its part of the shard's header. No calibration text is read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from impart.bit_plan import BITS
from impart.config import option
from impart.encodings import empty, head_and_tail, quantized_vectors, signs
from impart.encodings.encoded import Encoded
from impart.masks import LEVELS
from impart.method import FactoredMatrix, Matrix
from quantize.one_step import OneStepMethod
from quantize.vectors import rounded_triplets
from sparsify.allocation import budget_bits
from sparsify.shares import AUTO, Budget, best_alpha, check_tail_scale

ENCODINGS = {"head": "quantized_vectors", "tail": "signs"}
GRID_ERRORS = {2: 0.24, 3: 0.075, 4: 0.023, 8: 0.00011}  # of u v^T in that many bits, squared and relative
ROOM = 1.1  # an estimate of bytes leaves a tenth for masks that keep more, and for what small matrices round up


@dataclass(frozen=True, kw_only=True)
class LowRankSigns(OneStepMethod):
    """`head` of the bytes for triplets, one bit each for as many signs as the rest holds; every stored byte counts."""

    name: ClassVar = "lowrank_sparse"
    label: ClassVar = "LowRank+Sparse-Qt"

    compression_ratio_qt: float = option(
        help="CR_qt: 16-bit size of the linear layers over every stored byte of them", low=1.0
    )
    head: float | str = option(
        AUTO,
        help="share of the bytes for the leading triplets, the rest is signs; auto: by the spectrum of each matrix",
        low=0,
        high=1,
        words=(AUTO,),
    )
    head_bits: int = option(3, help="bits of every entry of the triplets", choices=BITS)
    tail_scale: float | str = option(
        AUTO,
        help="a: factor of the tail; 1 has mean|R| sign(R) in the mean, norm(R)^2 / (m n mean|R|^2), about 1.57, has R "
        "itself along R; auto: by f and R",
        low=0,
        high=2,
        words=(AUTO,),
    )

    def resolved(self) -> Self:
        check_tail_scale(self.tail_scale)
        return self

    @property
    def seeded(self) -> bool:
        return self.head != 1

    def check(self, name: str, m: int, n: int) -> None:
        self.budget(name, m, n).check(name, f"compression_ratio_qt={self.compression_ratio_qt:g}")

    def budget(self, name: str, m: int, n: int) -> Budget:
        """All bytes of an (m, n) matrix."""
        total = budget_bits(m, n, self.compression_ratio_qt)
        header = head_and_tail.expected_header_bytes(name, ENCODINGS, int(total / 8), self.head)
        triplet = self.head_bits * (m + n) + 8 * quantized_vectors.overhead_bytes(m, n, 1, [], -1, masked=False)
        return Budget(m, n, total - 8 * header, triplet, 1)

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        name, dW, budget = matrix.name, matrix.dense(), self.budget(matrix.name, *matrix.shape)
        if not torch.count_nonzero(dW):
            return empty.write(matrix.shape)
        if self.head == AUTO:
            factors = matrix.triplets(budget.rank(1.0))
            assert factors is not None  # dW is not zero
            matrix = FactoredMatrix(name, factors)
            whole = float(dW.double().square().sum())
            r = budget.best_rank(factors[1], whole, spread=math.pi / 2, error=GRID_ERRORS[self.head_bits])
        else:
            r = budget.rank(float(self.head))
        head, keep = self.rounded(matrix, r) if r else None, budget.keep(r)
        if head and (keep < 1 / LEVELS or self.head == 1):
            return head
        R = dW - head.dense(name) if head else dW
        mean = float(R.abs().mean(dtype=torch.float64))
        spread = float(R.double().square().mean()) / mean**2
        a = best_alpha(keep, spread) * spread if self.tail_scale == AUTO else float(self.tail_scale)
        tail = signs.write(R, a * mean, name=name, keep_ratio=keep, seed=seed)
        return head_and_tail.write(head, tail) if head else tail

    def rounded(self, matrix: Matrix, rank: int) -> Encoded:
        """The leading triplets in head_bits; of a delta of lower rank, all of them."""
        triplets = matrix.triplets(rank)
        assert triplets is not None  # dW is not zero
        r = min(rank, int(torch.count_nonzero(triplets[1])))
        U, s, V = (part[..., :r] for part in triplets)
        return rounded_triplets((U, s, V), torch.full((r,), self.head_bits, device=s.device))

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        return int(ROOM * 2 * sum(m * n for m, n in shapes.values()) / self.compression_ratio_qt)
