"""The sparsification methods on tensors that a test has at hand: one matrix in, what is stored of it out."""

from dataclasses import replace

import torch

from impart.encodings.encoded import Encoded
from impart.method import DenseMatrix, FactoredMatrix
from sparsify.accounting import Accounting
from sparsify.methods.dare import Dare, DareQt
from sparsify.methods.darex import DareX
from sparsify.methods.deltacome import DeltaCoMe
from sparsify.methods.impart import ImPart, ImPartQt, impart_to_size, pruned_rank
from sparsify.methods.lowrank import LowRank

Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
impart_rank = pruned_rank


def impart(*factors: torch.Tensor, name: str, cr: float, beta: float, C: float, seed: int, **keys) -> Encoded:
    """ImPart of U (m, r), s (r,), V (n, r)."""
    method = ImPart(compression_ratio=cr, preprune_ratio=beta, C=C, **keys).resolved()
    return method.encode(FactoredMatrix(name, factors), seed)


def lowrank(*factors: torch.Tensor, cr: float, name: str = "w") -> Encoded:
    """LowRank of U (m, r), s (r,), V (n, r)."""
    return LowRank(compression_ratio=cr).encode(FactoredMatrix(name, factors), 0)


def dare(dW: torch.Tensor, *, name: str, cr: float, seed: int, rescale: bool = True) -> Encoded:
    """DARE of dW (m, n)."""
    return Dare(compression_ratio=cr, rescale=rescale).encode(DenseMatrix(name, dW), seed)


def darex(dW: torch.Tensor, *, name: str, cr: float, seed: int, q: float | None) -> Encoded:
    """DAREx-q of dW (m, n)."""
    return DareX(compression_ratio=cr, q=q).resolved().encode(DenseMatrix(name, dW), seed)


def sized_impart(*factors: torch.Tensor, name: str, cr: float, beta: float, C: float, seed: int, accounting: Accounting,
                 mask: str = "bernoulli", rescale: bool = True) -> Encoded:  # fmt: skip
    """Algorithm 3 on U (m, r), s (r,), V (n, r)."""
    return impart_to_size(factors, name, cr, beta, C, accounting, seed=seed, mask=mask, rescale=rescale)


def deltacome(*factors: torch.Tensor, name: str, cr: float, accounting: Accounting) -> Encoded:
    """Delta-CoMe's triplets of U (m, r), s (r,), V (n, r)."""
    return _with(DeltaCoMe, cr, accounting, bit_plan=accounting.plan).encode(FactoredMatrix(name, factors), 0)


def dare_quantized(dW: torch.Tensor, *, name: str, cr: float, bits: int, seed: int, accounting: Accounting) -> Encoded:
    """What DARE leaves of dW (m, n) to quantize."""
    return _with(DareQt, cr, accounting, bits=bits).encode(DenseMatrix(name, dW), seed)


def _with(cls, cr: float, accounting: Accounting, **keys):
    counted = {"accounting": accounting.count, "grid": accounting.grid, "groupsize": accounting.groupsize}
    return replace(cls(compression_ratio_qt=cr, **counted, **keys), count_3bit_as_4=accounting.count_3bit_as_4)


__all__ = [
    "ImPartQt",
    "dare",
    "dare_quantized",
    "darex",
    "deltacome",
    "impart",
    "impart_rank",
    "lowrank",
    "sized_impart",
]
