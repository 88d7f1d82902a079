"""Delta-CoMe's allocation: as many dense triplets as fit at their bits (Ping et al. 2024, arXiv 2406.08903)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch

from impart.bit_plan import Plan, checked_plan
from impart.encodings import empty, svd
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.method import Matrix
from sparsify.allocation import budget_bits, dense_rank
from sparsify.faces import QuantizedMethod, bit_plan_option, with_sizes


@dataclass(frozen=True, kw_only=True)
class DeltaCoMe(QuantizedMethod):
    """The leading triplets of dW under the bit plan, every entry of them."""

    name: ClassVar = "deltacome"
    label: ClassVar = "Delta-CoMe"
    masked: ClassVar = False

    bit_plan: list[list[int | str]] = bit_plan_option()

    @property
    def seeded(self) -> bool:
        return False

    def resolved(self) -> Self:
        return replace(super().resolved(), bit_plan=checked_plan(self.bit_plan))

    @property
    def plan(self) -> Plan:
        return self.bit_plan

    def check(self, name: str, m: int, n: int) -> None:
        self.rank(name, m, n)

    def rank(self, name: str, m: int, n: int) -> int:
        """Number of triplets that are kept of an (m, n) matrix; InputError when not even one fits."""
        cr = self.compression_ratio_qt
        budget = budget_bits(m, n, cr)
        r = dense_rank(min(m, n), self.sized.cost(name, m, n, cr), budget)
        if r == 0:
            raise InputError(
                f"{name} ({m} x {n}): compression_ratio_qt={cr:g} leaves {budget / 8:.0f} bytes, less than one dense "
                f"triplet needs (accounting: {self.accounting}); take a lower ratio or fewer bits"
            )
        return r

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        (m, n), name = matrix.shape, matrix.name
        triplets = matrix.triplets(self.rank(name, m, n))
        if triplets is None:
            return empty.write((m, n))
        r = min(self.rank(name, m, n), int(torch.count_nonzero(triplets[1])))
        U, s, V = (part[..., :r] for part in triplets)
        sizes = self.sized.kept_bytes(name, m, n, (np.full(r, m), np.full(r, n)), self.compression_ratio_qt)
        return with_sizes(svd.write(U, s, V, torch.float16), *sizes)
