"""ImPart without beta and C: the shares of singular vectors that have the least expected error, from s alone.

Not of the paper, whose beta and C are chosen on validation items. With both factors of triplet k kept at a share x_k
and rescaled (Eq. 4-5), the expected squared error of s_k u_k v_k^T is s_k^2 (1 / x_k^2 - 1). Under a budget of sum x_k
columns the sum of these is least at x_k = min(1, t s_k^(2/3)). A triplet that is dropped misses s_k^2, which weighs
MASKED_KAPPA times as much as noise; but noise of u_k still answers to the inputs along v_k, so that it is smaller than
the KAPPA of sparsify/shares.py. The number of triplets is the one of the least sum.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from impart.config import option
from impart.encodings import empty
from impart.encodings.encoded import Encoded
from impart.masks import MASKS
from impart.method import Matrix
from sparsify.allocation import uv_sparsity
from sparsify.faces import SparseMethod
from sparsify.methods.impart import all_values, masked
from sparsify.shares import MASKED_KAPPA

RANKS_TRIED = 200


@dataclass(frozen=True, kw_only=True)
class ImPartAuto(SparseMethod):
    """Budget: m n / CR values of U and V together, as ImPart's."""

    name: ClassVar = "impart_auto"
    label: ClassVar = "ImPart (auto)"

    mask: str = option(
        "bernoulli", help="independent draws per entry, or exact counts per column", choices=tuple(MASKS)
    )

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        m, n = matrix.shape
        triplets = matrix.triplets(min(m, n))
        if triplets is None:
            return empty.write((m, n))
        columns = (1 - uv_sparsity(m, n, self.compression_ratio)) * min(m, n)
        p = 1 - least_error_shares(all_values(triplets), columns)
        return masked(triplets, p, matrix.name, seed=seed, mask=self.mask, rescale=True)


def least_error_shares(s: np.ndarray, columns: float) -> np.ndarray:
    """Kept shares (r,) of the triplets with values s (N,), descending, that have the least expected error.

    Their sum is at most `columns`, the number of columns of U, or of V, that the budget holds.
    """
    energy, nonzero = s**2, int(np.count_nonzero(s))
    best, found = np.inf, np.ones(0)
    for r in np.unique(np.geomspace(1, nonzero, RANKS_TRIED).astype(int)):
        shares = capped_shares(s[:r] ** (2 / 3), columns)
        error = (energy[:r] * (shares**-2 - 1)).sum() + MASKED_KAPPA * energy[r:].sum()
        if error < best:
            best, found = error, shares
    return found


def capped_shares(weights: np.ndarray, total: float) -> np.ndarray:
    """min(1, t w) for weights w (r,), positive and descending, with the t that makes their sum `total`."""
    whole = np.arange(len(weights))  # how many are 1
    t = (total - whole) / np.cumsum(weights[::-1])[::-1]
    fits = np.flatnonzero((t * weights <= 1) & (t > 0))
    if total >= len(weights) or not len(fits):
        return np.ones(len(weights))
    return np.minimum(1.0, t[fits[0]] * weights)
