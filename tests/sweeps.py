"""Every kind of sparse GPTQ's sweep over one problem, by the kernel and by the loop of small calls."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from test_quantize_sparse_gptq import problem

from quantize import block_kernel
from quantize.sparse_gptq import Quantized, inverse_of, quantize_groups, quantize_vectors


def sweeps(
    rows: int, columns: int, device: str = "cpu", dtype: torch.dtype = torch.float64
) -> list[Callable[[], Quantized]]:
    W, mask, H = (x.to(device) for x in problem(rows, columns))
    W, inverse = W.to(dtype), inverse_of(H.to(dtype))
    by_row, by_column = (torch.arange(count, device=device) % 3 + 2 for count in (rows, columns))
    return [
        partial(quantize_vectors, W, mask, inverse, by_row, along_rows=True),
        partial(quantize_vectors, W, mask, inverse, by_column, along_rows=False),
        partial(quantize_groups, W, mask, inverse, by_row, 64),
        partial(quantize_groups, W, mask, inverse, 3),
    ]


def shares_that_differ(*problem_of) -> Iterator[float]:
    """The share of codes of each sweep in which kernel and loop differ."""
    usable = block_kernel.usable
    for sweep in sweeps(*problem_of):
        found = []
        for kernel in (True, False):
            block_kernel.usable = lambda X, kernel=kernel: kernel
            found.append(sweep().codes)
        block_kernel.usable = usable
        yield float((found[0] != found[1]).double().mean())
