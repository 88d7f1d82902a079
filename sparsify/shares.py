"""How a budget is divided between leading triplets, the head, and a random sample of what they leave, the tail.

`auto` is a rule from the spectrum alone, not of the paper. In the mean a tail has alpha R of R = dW - L. What else it
has is noise without a direction, of energy alpha^2 q norm(R)^2 with q = spread / f - 1, where f is the share of entries
that is kept, and spread = norm(R)^2 / (m n mean|R|^2) for signs, 1 for values. What is missing of R weighs KAPPA times
as much as noise of the same energy, since inputs have more of the directions that fine-tuning has changed:

    J = norm(R)^2 (KAPPA (1 - alpha)^2 + alpha^2 q),   least at alpha = KAPPA / (KAPPA + q), where it is
    J = norm(R)^2 KAPPA q / (KAPPA + q),

and the head has the rank of the least J. How it compares with a grid search: benchmarks/README.md.
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from impart.errors import InputError
from impart.masks import LEVELS

AUTO = "auto"
KAPPA = 16.0  # between 10 and 20, J and held-out loss rank settings alike (benchmarks/README.md)


@dataclass(frozen=True)
class Budget:
    """What head and tail of an (m, n) matrix may take, and what a triplet and an entry take, all in bits."""

    m: int
    n: int
    total: float
    triplet: float
    entry: float

    def keep(self, rank: int) -> float:
        """Share of the entries that fits beside `rank` triplets; not positive where none does."""
        return min(1.0, (self.total - rank * self.triplet) / (self.entry * self.m * self.n))

    def rank(self, head: float) -> int:
        """Number of triplets that take `head` of the budget, and what all entries leave of it."""
        if head == 1:
            return min(self.m, self.n, max(1, int(self.total / self.triplet)))
        least = max(0.0, (self.total - self.entry * self.m * self.n) / self.triplet)
        return min(self.m, self.n, int(max(least, head * self.total / self.triplet)))

    def check(self, name: str, ratio: str) -> None:
        """InputError where not even a triplet or an entry fits."""
        if self.total < self.triplet and self.keep(0) < 1 / LEVELS:
            raise InputError(
                f"{name} ({self.m} x {self.n}): {ratio} leaves no byte beside the shard's header; take a lower ratio"
            )

    def best_rank(self, s: Tensor, whole: float, spread: float, error: float) -> int:
        """The rank of the least J: s (r,) leading singular values, whole = norm(dW)^2.

        `error`: the relative squared error with which a triplet is stored, which the tail then has to tell.
        """
        ranks = np.arange(self.rank(0.0), min(len(s), self.rank(1.0)) + 1)
        energy = np.concatenate([[0.0], np.cumsum(s.double().cpu().numpy() ** 2)])[ranks]
        left = np.maximum(whole - (1 - error) * energy, 0)
        q = np.array([noise(self.keep(int(r)), spread) for r in ranks])
        return int(ranks[np.argmin(left * KAPPA / (1 + KAPPA / np.maximum(q, 1e-12)))])


def noise(keep: float, spread: float) -> float:
    """q: energy of the noise of a tail that keeps this share of the entries, over that of the residual."""
    return spread / keep - 1 if keep >= 1 / LEVELS else math.inf


def best_alpha(keep: float, spread: float) -> float:
    """The part of the residual that the tail is to have in the mean."""
    return KAPPA / (KAPPA + noise(keep, spread))


def check_tail_scale(tail_scale: float | str) -> None:
    """InputError for a tail of zeros."""
    if tail_scale == 0:
        raise InputError("tail_scale=0 stores entries that are all 0; take head=1, which stores none")
