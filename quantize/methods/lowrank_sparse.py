"""Low rank plus signs: leading triplets of dW in few bits, and signs of a random sample of what they leave.

dW^ = L + a mean|R| sign(R) xi / f, where L is the best approximation of dW of rank r, in b bits by fitted grids,
R = dW - L, xi ~ Bernoulli(f) entry by entry from the seed, and a is tail_scale. A matrix takes r (b (m + n) + 32) bits,
one bit for each of its f m n signs, and its part of the shard's header. No calibration text is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from impart.bit_plan import BITS
from impart.config import option
from impart.encodings import empty, head_and_tail, quantized_vectors, signs
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.masks import LEVELS
from impart.method import Matrix
from quantize.one_step import OneStepMethod
from quantize.vectors import rounded_triplets
from sparsify.allocation import budget_bits, check_tail_scale, head_and_tail_shares

ENCODINGS = {"head": "quantized_vectors", "tail": "signs"}
ROOM = 1.1  # an estimate of bytes leaves a tenth for masks that keep more, and for what small matrices round up


@dataclass(frozen=True, kw_only=True)
class LowRankSigns(OneStepMethod):
    """`head` of the bytes for triplets, one bit each for as many signs as the rest holds; every stored byte counts."""

    name: ClassVar = "lowrank_sparse"
    label: ClassVar = "LowRank+Sparse-Qt"

    compression_ratio_qt: float = option(
        help="CR_qt: 16-bit size of the linear layers over every stored byte of them", low=1.0
    )
    head: float = option(0.5, help="share of the bytes for the leading triplets; the rest is signs", low=0, high=1)
    head_bits: int = option(3, help="bits of every entry of the triplets", choices=BITS)
    tail_scale: float = option(
        1.0, help="a: factor of the tail after its rescaling by 1 / f; less than 1 trades bias for noise", low=0, high=1
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
                f"{name} ({m} x {n}): compression_ratio_qt={self.compression_ratio_qt:g} leaves no byte beside the "
                "shard's header; take a lower ratio"
            )

    def split(self, name: str, m: int, n: int) -> tuple[int, float]:
        """Rank of the head, and the share of the entries whose signs the tail keeps."""
        budget = budget_bits(m, n, self.compression_ratio_qt)
        header = 8 * head_and_tail.expected_header_bytes(name, ENCODINGS, int(budget / 8), self.head)
        triplet = self.head_bits * (m + n) + 8 * quantized_vectors.overhead_bytes(m, n, 1, [], -1, masked=False)
        return head_and_tail_shares(m, n, budget - header, self.head, triplet, 1)

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        name, dW = matrix.name, matrix.dense()
        r, keep = self.split(name, *matrix.shape)
        if not torch.count_nonzero(dW):
            return empty.write(matrix.shape)
        head = self.rounded(matrix, r) if r else None
        if head and keep < 1 / LEVELS:
            return head
        R = dW - head.dense(name) if head else dW
        mu = self.tail_scale * float(R.abs().mean(dtype=torch.float64))
        tail = signs.write(R, mu, name=name, keep_ratio=keep, seed=seed)
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
