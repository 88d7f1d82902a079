"""How a budget is divided between leading triplets, the head, and a random sample of what they leave, the tail.

`auto` is a rule from the spectrum alone, not of the paper. In the mean a tail has alpha R of R = dW - L. What else it
has is noise without a direction, of energy alpha^2 q norm(R)^2 with q = spread / f - 1, where f is the share of entries
that is kept, and spread = norm(R)^2 / (m n mean|R|^2) for signs, 1 for values. What is missing of R weighs kappa times
as much as noise of the same energy, since inputs have more of the directions that fine-tuning has changed:

    J = norm(R)^2 (kappa (1 - alpha)^2 + alpha^2 q),   least at alpha = kappa / (kappa + q), where it is
    J = norm(R)^2 kappa q / (kappa + q),

and the head has the rank of the least J. How it compares with a grid search: benchmarks/README.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from impart.encodings import head_and_tail
from impart.errors import InputError
from impart.masks import LEVELS
from impart.method import Matrix
from impart.report import progress
from sparsify.allocation import BISECTIONS

AUTO = "auto"
SHARES = 2.0 ** (np.arange(-8, 9) / 4)  # of its even part of a total that a matrix may get
TINY = 1e-12
LOWEST_PRICE, HIGHEST_PRICE = 1e-30, 1e30  # of bytes, in errors: beyond all that there are
KAPPA = 16.0  # one number for all pairs, chosen on the tiny pair's validation items (benchmarks/README.md)
MASKED_KAPPA = 5.0  # the same where both factors of a triplet are masked (sparsify/methods/impart_auto.py)


@dataclass(frozen=True)
class Budget:
    """What head and tail of an (m, n) matrix may take, and what a triplet and an entry take, all in bits.

    `spare`: what is left besides when there is no head, whose tensors the shard's header then does not describe.
    """

    m: int
    n: int
    total: float
    triplet: float
    entry: float
    spare: float = 0.0

    def keep(self, rank: int) -> float:
        """Share of the entries that fits beside `rank` triplets; not positive where none does."""
        left = self.total - rank * self.triplet + (self.spare if rank == 0 else 0)
        return min(1.0, left / (self.entry * self.m * self.n))

    def rank(self, head: float) -> int:
        """Number of triplets that take `head` of the budget, and what all entries leave of it."""
        if head == 1:
            return min(self.m, self.n, max(1, int(self.total / self.triplet)))
        least = max(0.0, (self.total - self.entry * self.m * self.n) / self.triplet)
        return min(self.m, self.n, int(max(least, head * self.total / self.triplet)))

    def check(self, name: str, ratio: str) -> None:
        """InputError where not even a triplet or an entry fits."""
        if not self.is_enough:
            raise InputError(
                f"{name} ({self.m} x {self.n}): {ratio} leaves no byte beside the shard's header; take a lower ratio"
            )

    def least_error(
        self, s: Tensor, whole: float, spread: float, error: float, kappa: float = KAPPA
    ) -> tuple[float, int]:
        """The least J, and the rank that has it: s (r,) leading singular values, whole = norm(dW)^2.

        `error`: the relative squared error with which a triplet is stored, which the tail then has to tell.
        """
        ranks = np.arange(self.rank(0.0), min(len(s), self.rank(1.0)) + 1)
        energy = np.concatenate([[0.0], np.cumsum(s.double().cpu().numpy() ** 2)])[ranks]
        left = np.maximum(whole - (1 - error) * energy, 0)
        q = np.array([noise(self.keep(int(r)), spread) for r in ranks])
        J = left * kappa / (1 + kappa / np.maximum(q, TINY))
        return float(J.min()), int(ranks[J.argmin()])

    @property
    def is_enough(self) -> bool:
        """Whether a triplet or an entry fits."""
        return self.total >= self.triplet or self.keep(0) >= 1 / LEVELS


def budget_of(
    name: str,
    m: int,
    n: int,
    total: float,
    triplet: float,
    entry: float,
    encodings: Mapping[str, str],
    head: float | str,
) -> Budget:
    """What `total` bits of an (m, n) matrix leave beside its part of the shard's header."""

    def header(share: float) -> int:
        return 8 * head_and_tail.expected_header_bytes(name, encodings, int(total / 8), share)

    described = header(1.0 if head == 1 else 0.5)
    return Budget(m, n, total - described, triplet, entry, spare=described - header(0.0))


def least_error_shares_of(
    matrices: Sequence[Matrix], errors: Callable[[Matrix], np.ndarray | None], weight: Callable[[str], float]
) -> dict[str, float]:
    """Shares of their even parts that give the matrices the least sum of expected errors times `weight`, by names.

    errors: a matrix -> its expected errors (steps,) at SHARES, infinite where it cannot be; None for a delta of zeros,
    which has no part in it.
    """
    weighted, sizes = {}, {}
    for matrix in progress(matrices, what="dividing the bytes"):
        J = errors(matrix)
        if J is not None:
            weighted[matrix.name] = np.multiply(J, weight(matrix.name), where=np.isfinite(J), out=J.copy())
            sizes[matrix.name] = float(math.prod(matrix.shape))
    return shares_of_model(weighted, sizes)


def shares_of_model(errors: Mapping[str, np.ndarray], sizes: Mapping[str, float]) -> dict[str, float]:
    """Shares of their even parts of one total that give matrices the least sum of errors; InputError where none does.

    errors: (steps,) of each matrix at SHARES of its even part, infinite where nothing fits; sizes: the even parts.
    A matrix's share is the one of the least error + price * bytes, and the price is bisected until the total is met.
    """
    J, size = np.array(list(errors.values())), np.array(list(sizes.values()))  # (matrices, steps), (matrices,)
    size = size / size.mean()

    def chosen(price: float) -> np.ndarray:
        return SHARES[(J + price * size[:, None] * SHARES).argmin(1)]

    low, high = LOWEST_PRICE, HIGHEST_PRICE
    for _ in range(BISECTIONS):
        price = math.sqrt(low * high)
        low, high = (price, high) if (chosen(price) * size).sum() > size.sum() else (low, price)
    found = chosen(high)
    if not np.isfinite(J).any(1).all() or (found * size).sum() > size.sum() * (1 + TINY):
        raise InputError("budget: model leaves some matrix no byte beside the shard's header; take a lower ratio")
    # What is left goes to all alike, but to none beyond what it can take.
    largest = np.where(np.isfinite(J[:, -1]), np.inf, np.where(np.isfinite(J), SHARES, 0).max(1))
    found = np.minimum(found * size.sum() / (found * size).sum(), largest)
    return dict(zip(errors, found.tolist(), strict=True))


def noise(keep: float, spread: float) -> float:
    """q: energy of the noise of a tail that keeps this share of the entries, over that of the residual."""
    return spread / keep - 1 if keep >= 1 / LEVELS else math.inf


def best_alpha(keep: float, spread: float, kappa: float = KAPPA) -> float:
    """The part of the residual that the tail is to have in the mean."""
    return kappa / (kappa + noise(keep, spread))


def check_tail_scale(tail_scale: float | str) -> None:
    """InputError for a tail of zeros."""
    if tail_scale == 0:
        raise InputError("tail_scale=0 stores entries that are all 0; take head=1, which stores none")
