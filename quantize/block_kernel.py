"""One block of Algorithm 2's columns on a GPU, as one kernel: a few rows at a time stay on the chip for all of them.

An error reaches its own row only, so that rows need nothing of each other. The loop of `quantize/sparse_gptq.py` does
the same with five small calls per column, of which a GPU spends nearly all its time on the start; the sums here are in
another order, so that a weight that lies between two codes to the last bit may take the other one.
"""

from torch import Tensor

try:  # with torch wherever it was built for CUDA
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice
except ImportError:
    triton = None

ROWS, WARPS = 8, 4  # per program: of 8 to 64 rows and 1 to 8 warps the fastest on an H200


def usable(X: Tensor) -> bool:
    """Whether the kernel can take this matrix."""
    return triton is not None and X.is_cuda


def quantize_block(X: Tensor, M: Tensor, R: Tensor, zero: Tensor, top: Tensor, codes: Tensor, propagate: bool) -> None:
    """X (columns, rows), w / scale + zero, becomes its errors in steps; fills `codes`, 0 where M (columns, rows) is 0.

    R (columns, columns): its row j says how much of column j's error each column to the right takes. `zero`, `top`
    broadcast to X. `propagate`: a masked entry becomes code `zero` and has an error; else it has none.
    """
    columns, rows = X.shape
    zero, top = zero.expand_as(X), top.expand_as(X)
    _block[(triton.cdiv(rows, ROWS),)](
        X,
        M,
        R.contiguous(),
        zero,
        top,
        codes,
        rows,
        columns,
        X.stride(0),
        M.stride(0),
        codes.stride(0),
        *zero.stride(),
        *top.stride(),
        COLUMNS=triton.next_power_of_2(columns),
        ROWS=ROWS,
        PROPAGATE=propagate,
        num_warps=WARPS,
    )


if triton is not None:

    @triton.jit
    def _block(
        X,
        M,
        R,
        zero,
        top,
        codes,
        rows,
        columns,
        of_X,
        of_M,
        of_codes,
        zero_by_column,
        zero_by_row,
        top_by_column,
        top_by_row,
        COLUMNS: tl.constexpr,
        ROWS: tl.constexpr,
        PROPAGATE: tl.constexpr,
    ):
        r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        c = tl.arange(0, COLUMNS)
        inside = r < rows
        tile = (c < columns)[:, None] & inside[None, :]
        places = X + c.to(tl.int64)[:, None] * of_X + r[None, :]
        x = tl.load(places, mask=tile, other=0.0)  # (COLUMNS, ROWS)
        for j in range(columns):
            here = (c == j)[:, None]
            w = tl.sum(tl.where(here, x, 0.0), 0)
            kept = tl.load(M + tl.cast(j, tl.int64) * of_M + r, mask=inside, other=0.0) != 0
            z = tl.load(zero + j * zero_by_column + r * zero_by_row, mask=inside, other=0.0)
            t = tl.load(top + j * top_by_column + r * top_by_row, mask=inside, other=0.0)
            code = tl.minimum(tl.maximum(libdevice.rint(w), 0.0), t)
            error = w - tl.where(kept, code, z if PROPAGATE else w)
            tl.store(codes + tl.cast(j, tl.int64) * of_codes + r, tl.where(kept, code, 0.0).to(tl.uint8), mask=inside)
            reach = tl.load(R + j * columns + c, mask=c < columns, other=0.0)
            after = (c > j)[:, None]
            x = tl.where(here, error[None, :], tl.where(after, x - reach[:, None] * error[None, :], x))
        tl.store(places, x, mask=tile)
