"""TIES: trim task vectors, elect a sign per entry, average what agrees (Yadav et al. 2023, arXiv 2306.01708)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from merge.method import MergeMethod
from merge.sums import ascending, total


@dataclass(frozen=True)
class Ties(MergeMethod):
    """lambda * the mean of the entries that agree with the elected sign, after trimming.

    `trim` is the share of each task vector's entries that is set to zero, as in the authors' code: `ties_0.8_1.0` keeps
    the largest 20 %. The paper (Appendix C) and the TIES authors quote the share that stays, the retain ratio: retain
    0.4, 0.6, 0.8 of the paper is trim 0.6, 0.4, 0.2 here.

    departs from the paper: it is trimmed tensor by tensor, as in ImPart's release; with the key `trim_scope: model`
    over all tensors of a model together, as in the TIES authors' code and in MergeLM.
    """

    name: ClassVar = "ties"
    form: ClassVar = "ties_<trim>_<lambda>"
    example: ClassVar = "ties_0.8_1.0: the smallest 80 % of each task vector set to zero, lambda 1"
    weights_are_shares: ClassVar = True

    trim: float
    lam: float

    def __post_init__(self) -> None:
        if not 0 <= self.trim <= 1:
            raise ValueError(
                f"the trim ratio {self.trim:g} is the share of entries set to zero and lies between 0 and 1 "
                "(the paper's retain ratio is 1 minus it)"
            )

    @property
    def trimmed_share(self) -> float:
        return self.trim

    def may_return(self, weight: float) -> bool:
        return self.lam == 1.0

    def merge_piece(self, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        return _elected_mean(terms, weights).mul_(self.lam)


def ties(
    base: Tensor, deltas: Sequence[Tensor], trim: float, lam: float, weights: Sequence[float] | None = None
) -> Tensor:
    """W_base + lambda * the mean of the entries that agree with the elected sign, after each dW_t lost its smallest
    `trim` share of entries (`merge.thresholds.trim_threshold` for ties in magnitude), in base's dtype.

    The elected sign of an entry is that of the sum of the trimmed, weighted dW_t. Where they cancel exactly there is
    none, no model agrees, and the base's value stays.
    departs from the paper: it leaves that case open; the TIES authors' code gives it the sign of the tensor's
    majority, others the plus sign, and both move the weight towards some models for no reason in the entry itself.
    """
    return Ties(trim, lam).merged(base, deltas, weights)


def _elected_mean(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Elect and merge: the weighted mean of the terms that have the sign of their sum; 0 where the sum is 0.

    Written with clamps and products of signs: comparisons and `where` take 5 to 10 times as long on a CPU.
    """
    # The divisor needs the weight of the models on each side of 0; a term of 0 is on neither.
    weight_above, weight_below = torch.zeros_like(terms[0]), torch.zeros_like(terms[0])
    for term, weight in zip(terms, weights, strict=True):
        sign = term.sign()
        weight_above.add_(sign.clamp_min(0), alpha=weight)
        weight_below.sub_(sign.clamp_max_(0), alpha=weight)
    exact = [term.to(torch.float64) for term in ascending(terms)]
    above = total([term.clamp_min(0) for term in exact])
    below = total([term.clamp_max(0) for term in exact])
    elected = (above + below).sign()
    plus, minus = elected.clamp_min(0), elected.clamp_max(0).neg_()  # 1 where that sign was elected, else 0
    numerator = above.mul_(plus).add_(below.mul_(minus))
    divisor = weight_above.mul_(plus).add_(weight_below.mul_(minus))
    return numerator / divisor.add_(elected.abs_().neg_().add_(1))  # + 1 where no sign was elected: 0 / 1 there
