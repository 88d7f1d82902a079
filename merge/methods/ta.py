"""Task arithmetic: the weighted sum of the task vectors, scaled (Ilharco et al. 2023, arXiv 2212.04089)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from merge.method import MergeMethod
from merge.sums import ordered_sum


@dataclass(frozen=True)
class TaskArithmetic(MergeMethod):
    """lambda * sum_t w_t dW_t; a negative weight subtracts a model."""

    name: ClassVar = "ta"
    form: ClassVar = "ta_<lambda>"
    example: ClassVar = "ta_0.5"

    lam: float

    def may_return(self, weight: float) -> bool:
        return self.lam * weight == 1.0

    def merge_piece(self, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        return ordered_sum(terms).mul_(self.lam)


def task_arithmetic(
    base: Tensor, deltas: Sequence[Tensor], lam: float, weights: Sequence[float] | None = None
) -> Tensor:
    """W_base + lambda * sum_t w_t dW_t, in base's dtype. base and each delta have one shape; w_t is 1 if not given."""
    return TaskArithmetic(lam).merged(base, deltas, weights)
