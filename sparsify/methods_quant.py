"""Methods that meet a size in bits, on one matrix: ImPart by Algorithm 3, and what Delta-CoMe and DARE leave to quantize."""

from dataclasses import replace

import numpy as np
import torch

from impart.encoded import Encoded
from impart.encodings import empty, sparse_entries, sparse_factors, svd_factors
from impart.errors import InputError
from sparsify.allocation import preprune_ratio
from sparsify.allocation_quant import budget_bits, dense_rank, quantized_ratios, redrawn
from sparsify.costs import Accounting


def impart_to_size(
    U: torch.Tensor,
    s: torch.Tensor,
    V: torch.Tensor,
    *,
    name: str,
    cr: float,
    beta: float,
    C: float,
    seed: int,
    accounting: Accounting,
    mask: str = "bernoulli",
    rescale: bool = True,
) -> Encoded:
    """The kept entries of U (m, r) and V (n, r), r >= K, that at their bits take 1 / cr of dW in 16 bit (Algorithm 3)."""
    m, n = len(U), len(V)
    N, b, budget = min(m, n), preprune_ratio(m, n, beta), budget_bits(m, n, cr)
    values = np.zeros(N)
    values[: len(s)] = s.double().cpu().numpy()
    cost = accounting.cost(name, m, n, cr)
    p = quantized_ratios(values, b, C, cost, budget)

    def drawn(q: np.ndarray) -> tuple[int, int]:
        return accounting.drawn_bytes(name, m, n, q, seed=seed, mask=mask, cr=cr)

    if accounting.count == "bytes":
        p = redrawn(p, cost, lambda q: 8 * drawn(q)[1], budget)
    r = len(p)
    if r == 0:
        raise InputError(
            f"{name} ({m} x {n}): compression ratio {cr:g} leaves {budget / 8:.0f} bytes, less than one "
            f"singular triplet needs (accounting: {accounting.count}); take a lower ratio or fewer bits"
        )
    encoded = sparse_factors(U[:, :r], s[:r], V[:, :r], p, seed=seed, name=name, mask=mask, rescale=rescale)
    return encoded if accounting.plan is None else _with_sizes(encoded, *drawn(p))


def deltacome(
    U: torch.Tensor, s: torch.Tensor, V: torch.Tensor, *, name: str, cr: float, accounting: Accounting
) -> Encoded:
    """The leading triplets, dense: as many as 1 / cr of dW in 16 bit holds at their bits."""
    r = deltacome_rank(name, len(U), len(V), cr, accounting)
    r = min(r, int(torch.count_nonzero(s)))
    if r == 0:
        return empty((len(U), len(V)))
    kept = np.full(r, len(U)), np.full(r, len(V))
    return _with_sizes(
        svd_factors(U[:, :r], s[:r], V[:, :r], torch.float16), *accounting.kept_bytes(name, len(U), len(V), kept, cr)
    )


def deltacome_rank(name: str, m: int, n: int, cr: float, accounting: Accounting) -> int:
    """Number of triplets that Delta-CoMe keeps of an (m, n) matrix; InputError when not even one fits."""
    N, budget = min(m, n), budget_bits(m, n, cr)
    r = dense_rank(N, accounting.cost(name, m, n, cr), budget)
    if r == 0:
        raise InputError(
            f"{name} ({m} x {n}): compression_ratio_qt={cr:g} leaves {budget / 8:.0f} bytes, less than one "
            f"dense triplet needs (accounting: {accounting.count}); take a lower ratio or fewer bits"
        )
    return r


def dare_quantized(dW: torch.Tensor, *, name: str, cr: float, bits: int, seed: int, accounting: Accounting) -> Encoded:
    """The entries of dW (m, n) that survive, as many as 1 / cr of dW in 16 bit holds at `bits`."""
    if not torch.count_nonzero(dW):
        return empty(tuple(dW.shape))
    encoded = sparse_entries(dW, dare_keep_ratio(name, *dW.shape, cr, bits, accounting), seed=seed, name=name)
    return _with_sizes(encoded, *accounting.entries_bytes(name, *dW.shape, bits, encoded.facts["kept"][0], cr))


def dare_keep_ratio(name: str, m: int, n: int, cr: float, bits: int, accounting: Accounting) -> float:
    """The share of entries that DARE keeps; InputError when not even 1 of 65536 fits."""
    keep = accounting.entries_keep_ratio(name, m, n, bits, cr)
    if keep < 1 / 65536:
        raise InputError(
            f"{name} ({m} x {n}): compression_ratio_qt={cr:g} leaves no byte for entries of {bits} bits after "
            f"their grids (accounting: {accounting.count}); take a lower ratio or a larger groupsize"
        )
    return keep


def _with_sizes(encoded: Encoded, codes: int, stored: int) -> Encoded:
    """The matrix with what it will take once it is quantized: bytes of its codes, and of everything."""
    return replace(encoded, facts={**encoded.facts, "quantized_codes": codes, "quantized_bytes": stored})
