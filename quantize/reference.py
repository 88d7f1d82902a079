"""Sparse GPTQ in the paper's lines: Algorithm 2, to be read beside quantize/sparse_gptq.py, which is its fast form.

W (rows, n) is quantized column by column, n being the inputs of a layer and H = 2 X X^T their Hessian. The error of a
column changes the layer's outputs; the columns still to come make up for most of it when they move by the error times
its row of the inverse Hessian over the diagonal there.

Tests compare the codes of both forms, and benchmarks/quantization_speed.py times this one as the plain way.
"""

import torch
from torch import Tensor

from quantize.grid import minmax_grid, nearest_codes, top_codes


def sparse_gptq(
    W: Tensor,
    M: Tensor,
    H: Tensor,
    bits: int | Tensor,
    groupsize: int = -1,
    damping: float = 0.01,
    act_order: bool = True,
) -> tuple[Tensor, Tensor]:
    """W and mask M (rows, n), H (n, n) -> Q (rows, n) dequantized and its codes; both are 0 where M is."""
    order = column_order(H, act_order)
    Q, codes = quantize_columns(W[:, order], M[:, order], inverse_factor(H[order][:, order], damping), bits, groupsize)
    back = torch.argsort(order)
    return Q[:, back], codes[:, back]


def column_order(H: Tensor, act_order: bool) -> Tensor:
    """The columns in the order in which they are quantized: with `act_order` by descending activation."""
    if act_order:
        return torch.argsort(H.diagonal(), descending=True, stable=True)
    return torch.arange(len(H), device=H.device)


def inverse_factor(H: Tensor, damping: float) -> Tensor:
    """Hinv = Cholesky((H + damping * mean diagonal)^-1)^T, upper triangular (n, n).

    Row q of this factor is row q of the inverse of H without the columns before q, over the root of its diagonal: what
    the loop needs of every step's inverse, at once.
    """
    H = H + damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype, device=H.device)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)


def quantize_columns(
    W: Tensor, M: Tensor, Hinv: Tensor, bits: int | Tensor, groupsize: int = -1
) -> tuple[Tensor, Tensor]:
    """The loop of Algorithm 2 over columns that stand in their order -> Q and codes (rows, n).

    A group of columns is also the block of GPTQ's lazy batches: columns after it take its errors when it is done.
    """
    W, M, n = W.clone(), M.to(W.dtype), W.shape[1]
    B = n if groupsize <= 0 else groupsize
    Q, codes, top = torch.zeros_like(W), torch.zeros_like(W), top_codes(bits, W)
    for i in range(0, n, B):
        here = slice(i, min(i + B, n))
        W1, M1, Hinv1 = W[:, here].clone(), M[:, here], Hinv[here, here]  # one block, as GPTQ calls it
        Q1, Err = torch.zeros_like(W1), torch.zeros_like(W1)
        scale, zero = minmax_grid(W1, M1, bits)  # one grid per row and group, from what is kept
        for j in range(W1.shape[1]):
            w = W1[:, j] * M1[:, j]  # what the mask removes is 0 and stays 0: it has no error of its own
            Q1[:, j] = q = (nearest_codes(w, scale, zero, top) - zero) * scale * M1[:, j]
            Err[:, j] = err = (w - q) / Hinv1[j, j]
            W1[:, j:] -= err[:, None] @ Hinv1[None, j, j:]
        Q[:, here], codes[:, here] = Q1, nearest_codes(Q1, scale[:, None], zero[:, None], top[:, None]) * M1
        W[:, here.stop :] -= Err @ Hinv[here, here.stop :]
    return Q, codes
