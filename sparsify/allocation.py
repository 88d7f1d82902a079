"""How many entries every singular vector keeps: the budget of a matrix, pre-pruning, Algorithm 1 and Algorithm 3.

Symbols as in the paper: s singular values, alpha the matrix's mean sparsity over all N columns of U and V, beta the
pre-pruned share of columns, gamma the mean sparsity that is left to the K kept columns, C the exponent of the
importance, p the drop probability of each column.
"""

import math
from collections.abc import Callable

import numpy as np

from impart.errors import InputError

ROUNDING = 1e-12  # of alpha and b: at the largest feasible beta they are equal but for their last bits
Cost = Callable[[np.ndarray], float]  # p (r,) -> size; it must not rise when entries or whole columns are dropped
BISECTIONS = 60
REDRAWS = 3


def uv_sparsity(m: int, n: int, cr: float) -> float:
    """alpha of a matrix of shape (m, n): with it the non-zeros of U and V together are m n / cr, for every shape.

    1 - alpha = m n / (cr (m + n) N), N = min(m, n). For a square matrix it is (1 + A) / 2 with A = 1 - 1 / cr, as in
    the paper's footnote 2.
    """
    return 1.0 - m * n / (cr * (m + n) * min(m, n))  # departs from the paper: it derives square matrices only


def preprune_ratio(m: int, n: int, beta: float) -> float:
    """b of a matrix of shape (m, n): the paper's beta for a square one; elsewhere the kept share follows the budget."""
    return 1.0 - min(1.0, (1.0 - beta) * 2.0 * m * n / ((m + n) * min(m, n)))


def beta_of(m: int, n: int, rank: int) -> float:
    """The paper's beta that leaves `rank` singular vectors of a matrix of shape (m, n); the inverse of the above."""
    return 1.0 - (rank + ROUNDING * min(m, n)) * (m + n) / (2.0 * m * n)  # `kept_rank` rounds down


def largest_beta(cr: float) -> float:
    """The largest beta that `cr` leaves room for, the same for every shape: alpha >= b means beta <= 1 - 1 / (2 cr)."""
    return 1.0 - 1.0 / (2.0 * cr)


def check_feasible(name: str, m: int, n: int, cr: float, beta: float) -> None:
    """InputError when the pre-pruning alone drops more of the matrix than the compression ratio asks for."""
    alpha, b = uv_sparsity(m, n, cr), preprune_ratio(m, n, beta)
    if alpha < b - ROUNDING:
        largest = math.floor(largest_beta(cr) * 10**4) / 10**4  # rounded down: what the message names has to work
        raise InputError(
            f"{name} ({m} x {n}): preprune_ratio beta={beta:g} already drops b={b:.4f} of its singular vectors, more "
            f"than compression_ratio={cr:g} allows (alpha={alpha:.4f}); take beta <= {largest:g} or a higher ratio"
        )


def check_max_rank(name: str, m: int, n: int, cr: float, max_rank: int | None) -> None:
    """InputError when that many singular vectors, dense, are less than the compression ratio asks for."""
    needed = math.ceil(m * n / (cr * (m + n)))
    if max_rank is not None and max_rank < needed:
        raise InputError(
            f"{name} ({m} x {n}): {max_rank} singular vectors have fewer values than compression_ratio={cr:g} "
            f"allows; take max_rank >= {needed} or a higher ratio"
        )


def lowrank_rank(m: int, n: int, cr: float) -> int:
    """Number of dense triplets whose entries fit in m n / cr, at least 1 (the LowRank baseline)."""
    return max(1, int(m * n / (cr * (m + n))))


def kept_rank(N: int, beta: float) -> int:
    """K = floor(N (1 - beta)), in floating point as the release computes it (5120 at beta 0.8 keeps 1023)."""
    return int(N * (1.0 - beta))


def sparsity_ratios(s: np.ndarray, alpha: float, beta: float, C: float) -> np.ndarray:
    """Algorithm 1 on one matrix: drop probabilities of the columns that remain.

    s (N,) descending and non-negative; alpha, beta already per matrix. Returns p (r,) float64 with r <= N: the columns
    r.. are dropped whole, and the mean over the K pre-pruned columns is the smallest value >= gamma that dropping
    whole columns can reach. ValueError for an infeasible or meaningless input.
    """
    s = _checked_values(s, alpha, beta)
    K, gamma = kept_rank(len(s), beta), _gamma(alpha, beta)
    if K == 0 or s[0] == 0:
        return np.empty(0)
    importance = (s[:K] / s[0]) ** C  # Eq. 7
    p = (1.0 - importance) * gamma
    nonzero = int(np.count_nonzero(s[:K]))  # a zero tail costs nothing to drop
    return _shifted_boundary(p, nonzero, gamma)


def uniform_ratios(s: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The ablation without importance: p_k = gamma for every pre-pruned column with a non-zero singular value."""
    s = _checked_values(s, alpha, beta)
    K, gamma = kept_rank(len(s), beta), _gamma(alpha, beta)
    return np.full(int(np.count_nonzero(s[:K])) if gamma < 1 else 0, gamma)


def budget_bits(m: int, n: int, cr: float) -> float:
    """Bits that a matrix of shape (m, n) may take: 1 / cr of its 16-bit size."""
    return 16.0 * m * n / cr


def quantized_ratios(s: np.ndarray, b: float, C: float, cost: Cost, budget: float) -> np.ndarray:
    """Algorithm 3 on one matrix: drop probabilities p (r,) with `cost(p)` at most `budget`, and close to it.

    s (N,) descending, b the pre-pruned share of this matrix. Empty when not even one column fits. The release bisects
    alpha until the stored share is right to 1e-4; here the budget is met from below, to rounding, for every shape.
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


def _gamma(alpha: float, beta: float) -> float:
    if alpha < beta - ROUNDING:
        raise InputError(f"pre-pruning drops beta={beta:g} of the columns, more than alpha={alpha:.4f} allows")
    return (alpha - beta) / (1.0 - beta) if alpha > beta + ROUNDING else 0.0


def _checked_values(s: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    s = np.asarray(s, dtype=np.float64)
    if not (0 <= beta < 1 and 0 <= alpha <= 1):
        raise InputError(f"alpha={alpha:g} must be in [0, 1] and beta={beta:g} in [0, 1)")
    if s.ndim != 1 or not np.all(np.isfinite(s)) or np.any(s < 0) or np.any(np.diff(s) > 0):
        raise InputError("singular values must be a finite, non-negative, descending vector")
    return s


def _shifted_boundary(p: np.ndarray, remaining: int, gamma: float) -> np.ndarray:
    """Drops columns from the end until the mean of p over all K reaches gamma (Alg. 1, shift the boundary)."""
    K = len(p)
    means = (np.concatenate(([0.0], np.cumsum(p))) + (K - np.arange(K + 1))) / K  # means[r]: columns r.. dropped
    reached = np.flatnonzero(means[: remaining + 1] >= gamma)
    r = int(reached[-1]) if len(reached) else 0
    # The rule compares a left-to-right sum; next to the boundary repeat it to the letter, or exact ties differ.
    while r < remaining and _mean_with_dropped(p, r + 1) >= gamma:
        r += 1
    while r > 0 and _mean_with_dropped(p, r) < gamma:
        r -= 1
    return p[:r]


def _mean_with_dropped(p: np.ndarray, r: int) -> float:
    return float(np.cumsum(np.concatenate((p[:r], np.ones(len(p) - r))))[-1] / len(p))
