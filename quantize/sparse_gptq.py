"""Sparse GPTQ (Algorithm 2): quantize a masked matrix column by column, spreading each error over the columns to the right.

Columns are inputs: with x the inputs of W and H = 2 X X^T, a weight error E costs tr(E H E^T). Everything that depends on
H alone (order of the columns, damping, Cholesky factor) is an `Inverse`, made once and used for every matrix, and every row,
with the same inputs; rows may have different bits, so all rank groups of V pass in one sweep.

    sparse_gptq          W, mask, H -> dequantized Q, the whole of Algorithm 2 in one call
    quantize_groups      the paper's grid: min-max over groups of `groupsize` columns, each found when its turn comes
    quantize_vectors     one grid for every row (V) or column (U), fitted beforehand; errors of masked entries spread too
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.grid import fitted_grid, fp16_unit, minmax_grid, top_codes

BLOCK = 128  # columns between two updates of everything to the right (a lazy batch)
SUB_BLOCK = 32  # columns between two updates of the rest of the block
RETURNED_BLOCK = 32 << 20  # bytes (glibc's most): new pages for each of its many blocks of some MB would double a sweep's time


class NotPositiveDefinite(ValueError):
    """The damped Hessian has no Cholesky factor."""


@dataclass(frozen=True)
class Inverse:
    """What one Hessian (n, n) gives to every matrix with these inputs."""

    order: Tensor  # (n,) the columns in the order in which they are quantized
    factor: Tensor  # (n, n) upper triangular R with R^T R = the inverse of the damped H in that order
    dead: int  # inputs that were never active


@dataclass(frozen=True)
class Quantized:
    """Codes and the grids that they refer to: entry (i, j) is (codes - zero) * scale where kept, else 0."""

    codes: Tensor  # (rows, columns) uint8, 0 where masked
    scale: Tensor  # (rows or 1, groups)
    zero: Tensor  # (rows or 1, groups)
    group: Tensor  # (columns,) the group of each column
    mask: Tensor  # (rows, columns) bool

    def values(self) -> Tensor:
        """The dequantized matrix (rows, columns); worked out transposed, where a column's grid is one piece of memory."""
        zero, scale = (x.T.contiguous().index_select(0, self.group) for x in (self.zero, self.scale))  # (columns, rows or 1)
        return (self.codes.T.contiguous().to(scale.dtype) - zero).mul_(scale).mul_(self.mask.T.contiguous()).T


def sparse_gptq(W: Tensor, mask: Tensor, H: Tensor, bits: int | Tensor, groupsize: int = -1, damping: float = 0.01,
                act_order: bool = True) -> Tensor:
    """Algorithm 2: W, mask (rows, n), H (n, n) -> Q (rows, n) dequantized, zero where the mask is.

    `bits` is a number or one per row; `groupsize` -1 means one group; `damping` is a share of H's mean diagonal.
    """
    unit = fp16_unit(W)
    return quantize_groups(W / unit, mask, inverse_of(H, damping, act_order), bits, groupsize).values() * unit


def inverse_of(H: Tensor, damping: float = 0.01, act_order: bool = True) -> Inverse:
    """Order, damping and Cholesky factor of H (n, n); the permutation depends on H only."""
    diagonal = H.diagonal()
    if not bool(torch.isfinite(diagonal).all()):
        raise NotPositiveDefinite("the Hessian contains NaN or Inf")
    dead = diagonal == 0
    order = torch.arange(len(H), device=H.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    damped = H[order][:, order]
    # departs from the paper: an input that was never active keeps its weights, rounded to nearest, instead of losing them
    damped.diagonal().add_(torch.where(dead[order], torch.ones_like(diagonal), 0) + damping * diagonal.mean())
    # H = R^-1 R^-T with R^-1 upper triangular is the Cholesky factor of H flipped; one factor and one triangular inverse
    # instead of Cholesky, inverse, Cholesky
    lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if int(info) != 0:
        raise NotPositiveDefinite(f"the Hessian with damping {damping:g} is not positive definite")
    identity = torch.eye(len(H), dtype=H.dtype, device=H.device)
    return Inverse(order, torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True), int(dead.sum()))


def quantize_groups(W: Tensor, mask: Tensor, inverse: Inverse, bits: int | Tensor, groupsize: int = -1) -> Quantized:
    """Min-max grids over groups of `groupsize` consecutive columns of the order, one per row and group.

    The group of a column depends on the order, so it is part of the result.
    """
    rows, columns = W.shape
    size = columns if groupsize <= 0 else groupsize
    starts = range(0, columns, size)
    scale, zero = W.new_empty(2, rows, len(starts)).unbind()

    def grid_at(first: int, last: int, Wt: Tensor, Mt: Tensor) -> tuple[Tensor, Tensor]:
        found = minmax_grid(Wt.T, Mt.T, bits)
        scale[:, first // size], zero[:, first // size] = found
        return found[0].expand_as(Wt), found[1].expand_as(Wt)

    spans = [(first, min(first + size, columns)) for first in starts]
    codes = _sweep(W, mask, inverse, top_codes(bits, W).expand(columns, rows), spans, grid_at, propagate=False)
    group = torch.empty(columns, dtype=torch.long, device=W.device)
    group[inverse.order] = torch.arange(columns, device=W.device) // size
    return Quantized(codes, scale, zero, group, mask.bool())


def quantize_vectors(W: Tensor, mask: Tensor, inverse: Inverse, bits: int | Tensor, *, along_rows: bool) -> Quantized:
    """One fitted grid per row of W (`along_rows`: W is V^T) or per column (W is U), found before the sweep.

    `bits` is per row or per column accordingly. departs from the paper: what a masked entry should have become is an
    error like any other and is spread over the columns to the right (Algorithm 2 loses it).
    """
    rows, columns = W.shape
    scale, zero = fitted_grid(W, mask, bits) if along_rows else fitted_grid(W.T, mask.T, bits)
    top = top_codes(bits, W if along_rows else W.T)
    if along_rows:
        grids = [x.expand(columns, rows) for x in (scale, zero, top)]
    else:
        grids = [x[inverse.order].unsqueeze(1).expand(columns, rows) for x in (scale, zero, top)]

    def grid_at(first: int, last: int, Wt: Tensor, Mt: Tensor) -> tuple[Tensor, Tensor]:
        return grids[0], grids[1]

    codes = _sweep(W, mask, inverse, grids[2], [(0, columns)], grid_at, propagate=True)
    if along_rows:
        return Quantized(codes, scale[:, None], zero[:, None], torch.zeros_like(inverse.order), mask.bool())
    return Quantized(codes, scale[None], zero[None], torch.arange(columns, device=W.device), mask.bool())


def _sweep(W: Tensor, mask: Tensor, inverse: Inverse, top: Tensor, spans: list[tuple[int, int]],
           grid_at: Callable[[int, int, Tensor, Tensor], tuple[Tensor, Tensor]], propagate: bool) -> Tensor:
    """Algorithm 2 in the order of `inverse` -> codes (rows, columns), uint8, in W's own order.

    Works on the transpose, where a column is contiguous, in blocks and sub-blocks: an error reaches the rest of its sub-block
    at once, the rest of its block after the sub-block, everything further right after the block.
    """
    R = inverse.factor / inverse.factor.diagonal()[:, None]  # errors are divided by the diagonal once, here
    Wt = W.T.contiguous().index_select(0, inverse.order)  # (columns, rows)
    Mt = mask.T.contiguous().index_select(0, inverse.order).to(W.dtype)
    Ct, sub_codes = torch.empty_like(Wt, dtype=torch.uint8), Wt.new_empty(SUB_BLOCK, len(W))
    for first, last in spans:
        scale, zero = grid_at(first, last, Wt[first:last], Mt[first:last])  # (last - first, rows)
        kept_scale = scale * Mt[first:last]
        for block in range(first, last, BLOCK):
            end = min(block + BLOCK, last)
            errors = torch.empty_like(Wt[block:end])
            for sub in range(block, end, SUB_BLOCK):
                sub_end = min(sub + SUB_BLOCK, end)
                here = slice(sub - first, sub_end - first)
                lines = (Wt[sub:sub_end], Mt[sub:sub_end], sub_codes[: sub_end - sub], errors[sub - block : sub_end - block],
                         scale[here], kept_scale[here], zero[here], top[sub:sub_end])
                for j, (w, m, codes, error, c, kept_c, z, t) in enumerate(zip(*map(torch.unbind, lines), strict=True), sub):
                    w = w if propagate else w * m
                    torch.addcdiv(z, w, c, out=codes).round_().clamp_(min=0)
                    torch.minimum(codes, t, out=codes)
                    torch.addcmul(w, codes - z, kept_c, value=-1, out=error)  # w - Q
                    if j + 1 < sub_end:
                        Wt[j + 1 : sub_end].addr_(R[j, j + 1 : sub_end], error, alpha=-1)
                Ct[sub:sub_end] = sub_codes[: sub_end - sub]
                if sub_end < end:
                    Wt[sub_end:end].addmm_(R[sub:sub_end, sub_end:end].T, errors[sub - block : sub_end - block], alpha=-1)
            if end < len(Wt):
                Wt[end:].addmm_(R[block:end, end:].T, errors, alpha=-1)
    return Ct.index_select(0, torch.argsort(inverse.order)).T.contiguous().mul_(mask.bool())
