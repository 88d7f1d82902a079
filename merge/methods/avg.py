"""Averaging: the weighted mean of the models, which is the base plus the weighted mean of the task vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from merge.method import MergeMethod
from merge.sums import ordered_sum


@dataclass(frozen=True)
class Average(MergeMethod):
    """sum_t w_t dW_t / sum_t w_t."""

    name: ClassVar = "avg"
    form: ClassVar = "avg"
    weights_are_shares: ClassVar = True

    def may_return(self, weight: float) -> bool:
        return True

    def merge_piece(self, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        return ordered_sum(terms).div_(math.fsum(weights))


def average(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """W_base + the weighted mean of dW_t, in base's dtype; shapes are equal; w_t is 1 if not given."""
    return Average().merged(base, deltas, weights)
