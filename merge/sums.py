"""Sums of task vectors whose bits do not depend on the order of the models, and what else all merging methods share.

Pure functions: tensors and numbers in, tensors out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def ordered_sum(terms: Sequence[Tensor]) -> Tensor:
    """The float64 sum of terms of one shape, added entry by entry in ascending order."""
    return total(ascending(terms))


def ascending(terms: Sequence[Tensor]) -> list[Tensor]:
    """The terms sorted entry by entry, by a network of minima and maxima (odd-even transposition)."""
    terms = list(terms)
    for turn in range(len(terms) if len(terms) > 2 else 0):  # a sum of two terms is the same either way
        for left in range(turn % 2, len(terms) - 1, 2):
            low, high = terms[left], terms[left + 1]
            terms[left], terms[left + 1] = torch.minimum(low, high), torch.maximum(low, high)
    return terms


def total(terms: Sequence[Tensor]) -> Tensor:
    """The float64 sum of the terms in their order."""
    result = terms[0].to(torch.float64, copy=True)
    for term in terms[1:]:
        result += term
    return result


def trim_to(delta: Tensor, threshold: float) -> Tensor:
    """`delta` with the entries of magnitude below the threshold set to zero."""
    if threshold == 0:
        return delta
    below = torch.nextafter(torch.tensor(threshold, dtype=delta.dtype), torch.tensor(0.0, dtype=delta.dtype)).item()
    return torch.nn.functional.hardshrink(delta, below)  # zero where |d| <= below, which is |d| < threshold


def add_delta(base: Tensor, merged: Tensor) -> Tensor:
    """Base plus merged delta: added in the delta's precision, rounded once to base's dtype."""
    return (base.to(merged.dtype) + merged).to(base.dtype)
