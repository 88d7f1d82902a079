"""How many entries every singular vector keeps when they will be quantized: Algorithm 3.

The release solves for alpha by bisection until the stored share is right to 1e-4; here the budget is met from below, to
rounding, for every shape.
"""

from collections.abc import Callable

import numpy as np

from impart.errors import InputError
from sparsify.allocation import kept_rank, preprune_ratio, sparsity_ratios

Cost = Callable[[np.ndarray], float]  # p (r,) -> size; it must not rise when entries or whole columns are dropped
BISECTIONS = 60
REDRAWS = 3


def budget_bits(m: int, n: int, cr: float) -> float:
    """Bits that a matrix of shape (m, n) may take: 1 / cr of its 16-bit size."""
    return 16.0 * m * n / cr


def quantized_ratios(s: np.ndarray, b: float, C: float, cost: Cost, budget: float) -> np.ndarray:
    """Algorithm 3 on one matrix: drop probabilities p (r,) with `cost(p)` at most `budget`, and close to it.

    s (N,) descending, b the pre-pruned share of this matrix. Empty when not even one column fits.
    """
    if cost(sparsity_ratios(s, b, b, C)) <= budget:  # a delta of low rank: all of it fits
        return sparsity_ratios(s, b, b, C)
    low, high, p = b, 1.0, np.empty(0)  # cost at alpha = low is above the budget, at high it is not
    for _ in range(BISECTIONS):
        alpha = (low + high) / 2
        trial = sparsity_ratios(s, alpha, b, C)
        if cost(trial) <= budget:
            high, p = alpha, trial
        else:
            low = alpha
    return scaled_to(p, cost, budget)


def scaled_to(p: np.ndarray, cost: Cost, budget: float) -> np.ndarray:
    """p times one factor, such that the budget is spent.

    departs from the paper: dropping whole columns changes the size in steps, so that no alpha may meet the budget; what
    is left goes to all kept columns alike. (Filling the next column partly would give it a huge 1 / (1 - p).)
    """
    if len(p) == 0 or p.max() == 0:
        return p
    low, high = 0.0, 1.0 / p.max()  # cost at low is above the budget, or p = 0 is the answer
    for _ in range(BISECTIONS):
        factor = (low + high) / 2
        if cost(p * factor) <= budget:
            high = factor
        else:
            low = factor
    return np.minimum(p * high, 1.0)


def redrawn(p: np.ndarray, cost: Cost, drawn: Cost, budget: float) -> np.ndarray:
    """p adjusted until the size with the masks actually drawn, not only their mean, meets the budget."""
    for _ in range(REDRAWS):
        excess = drawn(p) - cost(p)
        p = scaled_to(p, cost, budget - excess)
    return p


def dense_rank(N: int, cost: Cost, budget: float) -> int:
    """The most dense triplets, at most N, that the budget allows (Delta-CoMe)."""
    low, high = 0, N
    while low < high:
        middle = (low + high + 1) // 2
        if cost(np.zeros(middle)) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def check_quantized(name: str, m: int, n: int, cr: float, beta: float, cost: Cost) -> None:
    """InputError when all the columns that pre-pruning leaves, dense, would take less than the budget."""
    N, budget = min(m, n), budget_bits(m, n, cr)
    K = kept_rank(N, preprune_ratio(m, n, beta))
    if cost(np.zeros(K)) >= budget:
        return
    needed = dense_rank(N, cost, budget) + 1
    if needed > N:
        raise InputError(
            f"{name} ({m} x {n}): even all {N} singular vectors take less than compression_ratio_qt={cr:g} "
            "allows; take a higher ratio or more bits"
        )
    largest = 1.0 - needed * (m + n) / (2.0 * m * n)  # needed / N = 1 - b = (1 - beta) 2 m n / ((m + n) N)
    raise InputError(
        f"{name} ({m} x {n}): preprune_ratio beta={beta:g} leaves {K} singular vectors, which at their bits "
        f"take less than compression_ratio_qt={cr:g} allows; take beta <= {np.floor(largest * 1e4) / 1e4:.4f} "
        "or a higher ratio"
    )
