"""Task arithmetic, TIES and plain averaging of the task vectors of one parameter (METHOD: W_t - W_base, one per model).

Pure functions: tensors and numbers in, tensors out. Sums are formed in float64 over the terms in ascending order, entry
by entry, so that the order of the models cannot change a bit, and rounded once to float32.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.thresholds import trim_threshold

PIECE = 1 << 14  # entries: on a CPU the dozen temporaries of a sum stay in the cache
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Method:
    """How the task vectors of one parameter become one: `kind` is ta, ties or avg."""

    kind: str
    lam: float = 1.0
    trim: float = 0.0

    def may_return(self, weight: float) -> bool:
        """Whether an entry on which only a model of this weight moved, or all alike, comes out as that model's."""
        return self.lam * (weight if self.kind == "ta" else 1.0) == 1.0

    def __str__(self) -> str:
        return {"ta": f"ta_{self.lam:g}", "ties": f"ties_{self.trim:g}_{self.lam:g}", "avg": "avg"}[self.kind]


def parse_method(text: str) -> Method:
    """`ta_<lambda>`, `ties_<trim>_<lambda>` or `avg` as a Method; ValueError saying what is wrong otherwise.

    <trim> is the share of each task vector's entries that TIES sets to zero, as in the authors' code: `ties_0.8_1.0`
    keeps the largest 20 %. The paper (Appendix C) and the TIES authors quote the share that stays, the retain ratio:
    retain 0.4, 0.6, 0.8 of the paper is trim 0.6, 0.4, 0.2 here.
    """
    if text == "avg":
        return Method("avg")
    if found := re.fullmatch(rf"ta_({NUMBER})", text):
        return Method("ta", _finite(text, found[1]))
    if found := re.fullmatch(rf"ties_({NUMBER})_({NUMBER})", text):
        trim, lam = _finite(text, found[1]), _finite(text, found[2])
        if not 0 <= trim <= 1:
            raise ValueError(
                f"{text!r}: the trim ratio {trim:g} is the share of entries set to zero and lies between "
                "0 and 1 (the paper's retain ratio is 1 minus it)"
            )
        return Method("ties", lam, trim)
    raise ValueError(
        f"{text!r} is none of ta_<lambda> (ta_0.5), ties_<trim ratio>_<lambda> (ties_0.8_1.0: the "
        "smallest 80 % of each task vector set to zero, lambda 1) and avg"
    )


def task_arithmetic(
    base: Tensor, deltas: Sequence[Tensor], lam: float, weights: Sequence[float] | None = None
) -> Tensor:
    """W_base + lambda * sum_t w_t dW_t, in base's dtype. base and each delta have one shape; w_t is 1 if not given."""
    return add_delta(base, merged_delta(Method("ta", lam), _checked(base, deltas), weights))


def average(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """W_base + the weighted mean of dW_t, which is the weighted mean of the models, in base's dtype."""
    return add_delta(base, merged_delta(Method("avg"), _checked(base, deltas), weights))


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
    trimmed = [trim_to(delta, trim_threshold(delta, trim)) for delta in _checked(base, deltas)]
    return add_delta(base, merged_delta(Method("ties", lam, trim), trimmed, weights))


def trim_to(delta: Tensor, threshold: float) -> Tensor:
    """`delta` with the entries of magnitude below the threshold set to zero."""
    if threshold == 0:
        return delta
    below = torch.nextafter(torch.tensor(threshold, dtype=delta.dtype), torch.tensor(0.0, dtype=delta.dtype)).item()
    return torch.nn.functional.hardshrink(delta, below)  # zero where |d| <= below, which is |d| < threshold


def add_delta(base: Tensor, merged: Tensor) -> Tensor:
    """Base plus merged delta: added in the delta's precision, rounded once to base's dtype."""
    return (base.to(merged.dtype) + merged).to(base.dtype)


def merged_delta(method: Method, deltas: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """One delta from float32 deltas of one shape (for ties: already trimmed) and one weight per model.

    Float64 deltas are taken as well and give a float64 delta.
    """
    if not deltas:
        raise ValueError("there is no task vector to merge")
    weights = [1.0] * len(deltas) if weights is None else [float(weight) for weight in weights]
    if len(weights) != len(deltas):
        raise ValueError(f"{len(weights)} weights for {len(deltas)} task vectors")
    if method.kind != "ta" and min(weights) <= 0:
        raise ValueError(f"{method}: the weights {weights} must be positive; only task arithmetic can subtract a model")
    if method.kind != "ta" and len(set(weights)) == 1:
        weights = [1.0] * len(weights)  # equal weights cancel in a mean; 1 keeps it exact
    pairs = sorted(zip(weights, deltas, strict=True), key=lambda pair: pair[0])  # sums of weights in one order
    weights, deltas = [weight for weight, _ in pairs], [delta.reshape(-1) for _, delta in pairs]
    merged = torch.empty_like(deltas[0])
    step = PIECE if merged.device.type == "cpu" else max(1, merged.numel())
    for start in range(0, merged.numel(), step):
        merged[start : start + step] = _merged_piece(method, [delta[start : start + step] for delta in deltas], weights)
    return merged.view(pairs[0][1].shape)


def _merged_piece(method: Method, deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    terms = [
        delta if weight == 1 else delta.to(torch.float64) * weight
        for weight, delta in zip(weights, deltas, strict=True)
    ]
    if method.kind == "ties":
        mean = _elected_mean(terms, weights)
    else:
        mean = _sum(_ascending(terms))
        if method.kind == "avg":
            mean /= math.fsum(weights)
    return mean.mul_(method.lam)


def _elected_mean(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Elect and merge: the weighted mean of the terms that have the sign of their sum; 0 where the sum is 0.

    Written with clamps and products of signs: comparisons and `where` take 5 to 10 times as long on a CPU.
    """
    weight_above, weight_below = torch.zeros_like(terms[0]), torch.zeros_like(terms[0])
    for term, weight in zip(terms, weights, strict=True):
        sign = term.sign()
        weight_above.add_(sign.clamp_min(0), alpha=weight)
        weight_below.sub_(sign.clamp_max_(0), alpha=weight)
    ascending = [term.to(torch.float64) for term in _ascending(terms)]
    above = _sum([term.clamp_min(0) for term in ascending])
    below = _sum([term.clamp_max_(0) for term in ascending])
    elected = (above + below).sign()
    plus, minus = elected.clamp_min(0), elected.clamp_max(0).neg_()  # 1 where that sign was elected, else 0
    total = above.mul_(plus).add_(below.mul_(minus))
    divisor = weight_above.mul_(plus).add_(weight_below.mul_(minus))
    return total / divisor.add_(elected.abs_().neg_().add_(1))  # + 1 where no sign was elected: 0 / 1 there


def _ascending(terms: Sequence[Tensor]) -> list[Tensor]:
    """The terms sorted entry by entry, by a network of minima and maxima (odd-even transposition)."""
    terms = list(terms)
    for turn in range(len(terms) if len(terms) > 2 else 0):  # a sum of two terms is the same either way
        for left in range(turn % 2, len(terms) - 1, 2):
            low, high = terms[left], terms[left + 1]
            terms[left], terms[left + 1] = torch.minimum(low, high), torch.maximum(low, high)
    return terms


def _sum(terms: Sequence[Tensor]) -> Tensor:
    """The float64 sum of the terms in their order."""
    total = terms[0].to(torch.float64, copy=True)
    for term in terms[1:]:
        total += term
    return total


def _checked(base: Tensor, deltas: Sequence[Tensor]) -> list[Tensor]:
    for delta in deltas:
        if delta.shape != base.shape:
            raise ValueError(f"a delta of shape {tuple(delta.shape)} for a parameter of shape {tuple(base.shape)}")
    return [delta.to(torch.float64 if base.dtype == torch.float64 else torch.float32) for delta in deltas]


def _finite(text: str, number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{text!r}: {number} is not a finite number")
    return value
