"""The sparsification methods on one matrix: ImPart and its ablations, DARE, LowRank.

Each takes tensors and numbers and returns the matrix as an artifact stores it.
"""

import numpy as np
import torch

from impart.encodings import Encoded, empty, sparse_entries, sparse_factors, svd_factors
from sparsify.allocation import kept_rank, lowrank_rank, preprune_ratio, sparsity_ratios, uniform_ratios, uv_sparsity


def impart_rank(m: int, n: int, beta: float) -> int:
    """Number K of leading triplets that pre-pruning with the paper's beta leaves of an (m, n) matrix."""
    return kept_rank(min(m, n), preprune_ratio(m, n, beta))


def impart(
    U: torch.Tensor,
    s: torch.Tensor,
    V: torch.Tensor,
    *,
    name: str,
    cr: float,
    beta: float,
    C: float,
    seed: int,
    allocation: str = "importance",
    mask: str = "bernoulli",
    rescale: bool = True,
) -> Encoded:
    """ImPart on U (m, r), s (r,), V (n, r) at compression ratio `cr`; the leading K triplets are enough.

    allocation: "importance" (Algorithm 1) or "uniform" (every kept column the same); beta = 0 skips pre-pruning;
    rescale: False leaves 1 / (1 - p) out. These are the ablations of Table 3.
    """
    m, n = len(U), len(V)
    N, alpha, b = min(m, n), uv_sparsity(m, n, cr), preprune_ratio(m, n, beta)
    values = np.zeros(N)
    values[: len(s)] = s.double().cpu().numpy()
    p = sparsity_ratios(values, alpha, b, C) if allocation == "importance" else uniform_ratios(values, alpha, b)
    r = len(p)
    if r == 0:  # departs from the paper: it does not treat a p that leaves no column
        return empty((m, n))
    return sparse_factors(U[:, :r], s[:r], V[:, :r], p, seed=seed, name=name, mask=mask, rescale=rescale)


def lowrank(U: torch.Tensor, s: torch.Tensor, V: torch.Tensor, *, cr: float) -> Encoded:
    """The leading floor(m n / (cr (m + n))) triplets, dense, in fp16."""
    m, n = len(U), len(V)
    r = min(lowrank_rank(m, n, cr), int(torch.count_nonzero(s)))
    return svd_factors(U[:, :r], s[:r], V[:, :r], torch.float16) if r else empty((m, n))


def dare(dW: torch.Tensor, *, name: str, cr: float, seed: int, rescale: bool = True) -> Encoded:
    """Every entry of dW (m, n) kept with probability 1 / cr and multiplied by cr."""
    if not torch.count_nonzero(dW):
        return empty(tuple(dW.shape))
    return sparse_entries(dW, 1.0 / cr, seed=seed, name=name, rescale=rescale)
