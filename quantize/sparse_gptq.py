"""Sparse GPTQ (Algorithm 2), fast: a masked matrix column by column, each error spread over the columns after it.

quantize/reference.py has the same algorithm in the paper's lines; read it first.

Columns are inputs: with x the inputs of W and H = 2 X X^T, a weight error E costs tr(E H E^T). Everything that depends
on H alone (order of the columns, damping, Cholesky factor) is an `Inverse`, made once and used for every matrix, and
every row, with the same inputs; rows may have different bits, so all rank groups of V pass in one sweep.

    sparse_gptq          W, mask, H -> dequantized Q, the whole of Algorithm 2 in one call
    quantize_groups      the paper's grid: min-max over groups of `groupsize` columns, each found when its turn comes
    quantize_vectors     one grid for every row (V) or column (U), fitted beforehand; masked entries' errors spread too
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantize import block_kernel
from quantize.grid import fitted_grid, fp16_unit, minmax_grid, top_codes

BLOCK = 128  # columns that collect the errors of everything to their left together (a lazy batch)
SUB_BLOCK = 32  # columns that collect the errors of earlier columns of their block together
# Bytes, the most that glibc allows. A sweep allocates many blocks of some MB; new pages for each would double its time.
RETURNED_BLOCK = 32 << 20


class NotPositiveDefinite(ValueError):
    """The damped Hessian has no Cholesky factor."""


@dataclass(frozen=True)
class Inverse:
    """What one Hessian (n, n) gives to every matrix with these inputs."""

    order: Tensor  # (n,) the columns in the order in which they are quantized
    factor: Tensor  # (n, n) upper triangular R with R^T R = the inverse of the damped H in that order
    dead: int  # inputs that were never active
    damping: float | None  # that was added, as a share of H's mean diagonal; None: H has no part in it (`nearest`)


@dataclass(frozen=True)
class Quantized:
    """Codes and the grids that they refer to: entry (i, j) is (codes - zero) * scale where kept, else 0."""

    codes: Tensor  # (rows, columns) uint8, 0 where masked
    scale: Tensor  # (rows or 1, groups)
    zero: Tensor  # (rows or 1, groups)
    group: Tensor  # (columns,) the group of each column
    mask: Tensor  # (rows, columns) bool

    def values(self) -> Tensor:
        """The dequantized matrix (rows, columns), computed transposed: there a column's grid is contiguous."""
        zero, scale = (
            x.T.contiguous().index_select(0, self.group) for x in (self.zero, self.scale)
        )  # (columns, rows or 1)
        kept = self.mask.T.contiguous().view(torch.uint8)  # bool is slower to multiply with
        return self.codes.T.contiguous().to(scale.dtype).sub_(zero).mul_(scale).mul_(kept).T


def sparse_gptq(
    W: Tensor,
    mask: Tensor,
    H: Tensor,
    bits: int | Tensor,
    groupsize: int = -1,
    damping: float = 0.01,
    act_order: bool = True,
) -> Tensor:
    """Algorithm 2: W, mask (rows, n), H (n, n) -> Q (rows, n) dequantized, zero where the mask is.

    `bits` is a number or one per row; `groupsize` -1 means one group; `damping` is a share of H's mean diagonal.
    """
    unit = fp16_unit(W)
    return quantize_groups(W / unit, mask, inverse_of(H, damping, act_order), bits, groupsize).values() * unit


def inverse_of(H: Tensor, damping: float = 0.01, act_order: bool = True) -> Inverse:
    """Order, damping and Cholesky factor of H (n, n); the permutation depends on H only."""
    diagonal = H.diagonal()
    if not bool(torch.isfinite(H).all()):
        raise NotPositiveDefinite("the Hessian contains NaN or Inf")
    dead = diagonal == 0
    order = torch.arange(len(H), device=H.device)
    if act_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    damped = H[order][:, order]
    # departs from the paper: the weights of an input that was never active are rounded to nearest instead of set to 0
    damped.diagonal().add_(torch.where(dead[order], torch.ones_like(diagonal), 0) + damping * diagonal.mean())
    # The paper's Hinv is the upper R with R^T R = H^-1, by Cholesky, inverse and Cholesky again. One Cholesky factor
    # and one triangular inverse give the same R: H = R^-1 R^-T, where R^-1 is upper triangular. It is the Cholesky
    # factor of H with rows and columns reversed, reversed back, which turns its lower triangle into an upper one.
    lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if int(info) != 0:
        raise NotPositiveDefinite(f"the Hessian with damping {damping:g} is not positive definite")
    identity = torch.eye(len(H), dtype=H.dtype, device=H.device)
    factor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    if not bool(torch.isfinite(factor).all()):  # so nearly singular that its inverse overflows
        raise NotPositiveDefinite(f"the Hessian with damping {damping:g} has no finite inverse")
    return Inverse(order, factor, int(dead.sum()), damping)


def nearest(H: Tensor, act_order: bool = True) -> Inverse:
    """The `Inverse` that rounds to nearest, for an H (n, n) without a factor: no error reaches another column."""
    diagonal, order = H.diagonal(), torch.arange(len(H), device=H.device)
    if act_order and bool(torch.isfinite(diagonal).all()):  # the order decides which columns share a grid
        order = torch.argsort(diagonal, descending=True, stable=True)
    identity = torch.eye(len(H), dtype=H.dtype, device=H.device)
    return Inverse(order, identity, int((diagonal == 0).sum()), None)


def quantize_groups(W: Tensor, mask: Tensor, inverse: Inverse, bits: int | Tensor, groupsize: int = -1) -> Quantized:
    """Min-max grids over groups of `groupsize` consecutive columns of the order, one per row and group.

    The group of a column depends on the order, so it is part of the result.
    """
    rows, columns = W.shape
    size = columns if groupsize <= 0 else groupsize
    starts = range(0, columns, size)
    scale, zero = W.new_empty(2, rows, len(starts)).unbind()

    def grid_at(first: int, Wt: Tensor, Mt: Tensor) -> tuple[Tensor, Tensor]:
        scale[:, first // size], zero[:, first // size] = found = minmax_grid(Wt.T, Mt.T, bits)
        return found

    # A group's grid depends on what the errors before it made of its columns, so a span of the sweep is one group.
    spans = [(first, min(first + size, columns)) for first in starts]
    codes = _sweep(W, mask, inverse, top_codes(bits, W), spans, grid_at, propagate=False)
    group = torch.empty(columns, dtype=torch.long, device=W.device)
    group[inverse.order] = torch.arange(columns, device=W.device) // size
    return Quantized(codes, scale, zero, group, mask.bool())


def quantize_vectors(W: Tensor, mask: Tensor, inverse: Inverse, bits: int | Tensor, *, along_rows: bool) -> Quantized:
    """One fitted grid per row of W (`along_rows`: W is V^T) or per column (W is U), found before the sweep.

    `bits` is per row or per column accordingly. departs from the paper: what a masked entry should have become is an
    error like any other and is spread over the columns to the right (Algorithm 2 loses it).
    """
    columns = W.shape[1]
    if along_rows:
        scale, zero = fitted_grid(W, mask, bits)
        top = top_codes(bits, W)
        codes = _sweep(W, mask, inverse, top, [(0, columns)], lambda *_: (scale, zero), propagate=True)
        return Quantized(codes, scale[:, None], zero[:, None], torch.zeros_like(inverse.order), mask.bool())
    # Grids along columns have no scale of a row, which the sweep wants. Count every column in its own steps instead: an
    # error of e steps of column i changes column j by e * R_ij * step_i / step_j of its own, so that the factor, scaled
    # on both sides, also turns steps of one column into those of another, and every scale is 1.
    scale, zero = fitted_grid(W.T, mask.T, bits)
    steps, zeros, tops = (x[inverse.order, None] for x in (scale, zero, top_codes(bits, W.T)))
    counted = replace(inverse, factor=inverse.factor * steps / steps.T)
    one = torch.ones_like(steps)
    codes = _sweep(W / scale, mask, counted, tops, [(0, columns)], lambda *_: (one, zeros), propagate=True)
    return Quantized(codes, scale[None], zero[None], torch.arange(columns, device=W.device), mask.bool())


def _sweep(
    W: Tensor,
    mask: Tensor,
    inverse: Inverse,
    top: Tensor,
    spans: list[tuple[int, int]],
    grid_at: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
    propagate: bool,
) -> Tensor:
    """Algorithm 2 in the order of `inverse` -> codes (rows, columns), uint8, in W's own order.

    `top` (rows,) or (columns, 1) are the largest codes. `grid_at` gives scale and zero of a span of columns when its
    turn comes; a scale holds for a whole row of the span.

    Columns collect the errors to their left when their turn comes: those of earlier spans together with their span,
    those of earlier blocks with their block, those of earlier sub-blocks with their sub-block, the last on their own.
    """
    # Why transposed: each of the many small steps reads and writes whole columns of W, which are contiguous in W^T. And
    # why in place: a column that is quantized is not needed any more, so that its place takes its error.
    R, diagonal = inverse.factor, inverse.factor.diagonal()[:, None]
    Wt = W.T.contiguous().index_select(0, inverse.order)  # (columns, rows)
    Mt = mask.bool().T.contiguous().view(torch.uint8).index_select(0, inverse.order)
    codes, top = torch.empty_like(Mt), top.expand_as(Wt)
    for first, last in spans:
        X, M, here = Wt[first:last], Mt[first:last].to(W.dtype), slice(first, last)
        _collect(X, R[:first, here], Wt[:first])
        scale, zero = grid_at(first, X, M)
        # Within a span, count in steps of the grid, zero included: rounding is then all that quantizing takes. That is
        # allowed because an error reaches its own row only, and a row has one scale in a span.
        torch.addcdiv(zero, X, scale, out=X)
        # Algorithm 2 divides each error by the factor's diagonal. Dividing the factor's rows instead is once per span.
        _quantize_span(X, M, R[here, here] / diagonal[here], zero, top[here], codes[here], propagate)
        X.mul_(scale).div_(diagonal[here])  # errors in the units of W, as Algorithm 2 has them, for the spans to come
    return codes.index_select(0, torch.argsort(inverse.order)).T.contiguous()


@torch.inference_mode()  # five small calls per column, each faster without autograd's bookkeeping
def _quantize_span(X: Tensor, M: Tensor, R: Tensor, zero: Tensor, top: Tensor, codes: Tensor, propagate: bool) -> None:
    """X (columns, rows), w / scale + zero of a span, becomes its errors in steps; fills `codes`, 0 where M is 0."""
    R.diagonal().zero_()  # what is left says how much of each error reaches the columns to its right
    zero = zero.expand_as(X)
    quantize_block = block_kernel.quantize_block if block_kernel.usable(X) else _quantize_block
    for block in range(0, len(X), BLOCK):
        here = slice(block, min(block + BLOCK, len(X)))
        _collect(X[here], R[:block, here], X[:block])
        quantize_block(X[here], M[here], R[here, here], zero[here], top[here], codes[here], propagate)


def _quantize_block(X: Tensor, M: Tensor, R: Tensor, zero: Tensor, top: Tensor, codes: Tensor, propagate: bool) -> None:
    """`_quantize_span` of the columns of one block, for which `zero` and `top` have the shape of X."""
    # `part` below holds errors of columns that are done and weights of columns to come. A column collects with one
    # product over all of them: its column r of R is 0 where weights stand, so that every call has the same shape.
    rounded, (x, low) = X.new_empty(SUB_BLOCK, X.shape[1]), X.new_zeros(2, X.shape[1])
    # A masked entry becomes 0, which is code `zero`, and has an error to spread; or it stays what it is and has none.
    masked = zero.unbind() if propagate else [x] * len(X)
    for sub in range(0, len(X), SUB_BLOCK):
        here = slice(sub, min(sub + SUB_BLOCK, len(X)))
        _collect(X[here], R[:sub, here], X[:sub])
        part, C = X[here].T, rounded[: len(X[here])]
        reach = R[here, here].T.contiguous()  # addmv is slow with a strided vector
        for w, m, c, r, t, other in zip(part.T, M[here], C, reach, top[here], masked[here], strict=True):
            torch.addmv(w, part, r, alpha=-1, out=x)  # collect: r is 0 at this column and to the right of it
            torch.round(x, out=c)
            torch.clamp(c, low, t, out=c)
            torch.lerp(other, c, m, out=c)  # the code where m is 1, `other` where it is 0: cheaper than where()
            torch.sub(x, c, out=w)  # the error in steps
        codes[here] = C.mul_(M[here])  # a masked entry has no code


def _collect(X: Tensor, R: Tensor, errors: Tensor) -> None:
    """Columns X (columns, rows) take the errors (others, rows) of other columns to their left; R (others, columns)."""
    X.addmm_(R.T, errors, alpha=-1)
