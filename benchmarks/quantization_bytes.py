"""Bytes on disk of one quantized matrix in every layout, and how fast it is unpacked and added to its base weight.

    python benchmarks/quantization_bytes.py
    python benchmarks/quantization_bytes.py --sizes 5120 --device cuda

Ratios are of the 16-bit size of dW over what one safetensors file of the matrix holds, header included; the first two
rows are what the authors' groups of 128 cost with the precision that their code keeps in memory and with the least that
would do. All but the rows with `accounting: bytes` are allocated by their codes alone. Throughput is 16-bit weights of
the last size per second, from packed tensors in memory to base + dW in 16 bit, against copying the weights.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as `python benchmarks/quantization_bytes.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from safetensors.torch import save
from torch import Tensor

from benchmarks.side_by_side import machine
from impart.bit_plan import PAPER_PLAN, cut_plan, plan_spans
from impart.config import Parser
from impart.device import use_device
from impart.encodings import quantized_groups, quantized_vectors, signs
from impart.encodings.encoded import Encoded
from impart.encodings.masked import factor_masks
from impart.errors import InputError, run
from impart.packing import unpack
from impart.report import table
from sparsify.accounting import Accounting
from sparsify.methods.impart import impart_to_size, pruned_rank

NAME, PLAN, GROUP = "model.layers.11.self_attn.q_proj.weight", [list(part) for part in PAPER_PLAN], 128
SMALLEST = 512  # below, a ratio of 128 leaves less than one triplet with its grids


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--sizes", default="1024,2048,4096", help="of the square matrices (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, 0 for all cores (default: %(default)s)")
    flags = parser.parse_args(arguments)
    sizes, device = [size_of(text) for text in flags.sizes.split(",")], use_device(flags.device, flags.threads)
    cases = [(size, beta, C) for size in sizes for beta, C in ((0.6, 1.0), (0.8, 0.5))]
    print(machine(device))
    for cr in (32.0, 128.0):
        columns = [layouts(size, cr, beta, C) for size, beta, C in cases]
        rows = [(layout, *(f"{column[layout]:.2f}" for column in columns)) for layout in columns[0]]
        print(f"\nnominal ratio {cr:g}: 16-bit size over bytes on disk, of n x n at beta, C")
        print(table(rows, ("layout", *(f"{size}: {beta}, {C:g}" for size, beta, C in cases))))
    print(f"\n{sizes[-1]} x {sizes[-1]}")
    print(table(throughput(sizes[-1], device), ("", "seconds", "MB/s of 16-bit weights", "of a copy")))


def size_of(text: str) -> int:
    if not text.isdecimal() or int(text) < SMALLEST:
        raise InputError(f"--sizes: {text!r} is not a whole number of at least {SMALLEST}, like 2048")
    return int(text)


def layouts(size: int, cr: float, beta: float, C: float) -> dict[str, float]:
    """Layout -> true ratio of a matrix that is allocated for the nominal one."""
    source = sparse_matrix(size, cr, beta, C, Accounting(PLAN, "paper"))
    paper, compact = quantized(source, "paper"), quantized(source, "compact")
    by_bytes = {
        grid: quantized(sparse_matrix(size, cr, beta, C, Accounting(PLAN, "bytes", grid)), grid)
        for grid in ("paper", "compact")
    }
    grids = paper.tensors["scales"].numel()
    in_memory = disk_bytes(paper) + grids * (4 + 4 - 2) - paper.tensors["zeros"].nbytes + (2 * size - 1) * 4
    bitmap = disk_bytes(compact) + 2 * size * source.facts["rank"] // 8
    stored = {
        "groups of 128, fp32 scale, zero and index": in_memory,
        "groups of 128, fp16 scale, packed zero (grid: paper)": disk_bytes(paper),
        "grid: paper with accounting: bytes": disk_bytes(by_bytes["paper"]),
        "one grid per vector, a bitmap for the masks": bitmap,
        "one grid per vector, a seed (grid: compact)": disk_bytes(compact),
        "grid: compact with accounting: bytes": disk_bytes(by_bytes["compact"]),
    }
    return {layout: 2 * size * size / count for layout, count in stored.items()}


def sparse_matrix(size: int, cr: float, beta: float, C: float, accounting: Accounting) -> Encoded:
    generator = torch.Generator().manual_seed(0)
    K = pruned_rank(size, size, beta)
    s = torch.arange(1, K + 1).double().pow(-0.7).add(0.1).float()
    U, V = (torch.randn(size, K, generator=generator) / size**0.5 for _ in range(2))
    return impart_to_size((U, s, V), NAME, cr, beta, C, accounting, seed=0, mask="bernoulli", rescale=True)


def quantized(source: Encoded, grid: str) -> Encoded:
    """Random codes in the layout and number of real ones: what is timed and counted here does not depend on them."""
    (m, n), r = source.shape, source.facts["rank"]
    masks = factor_masks(NAME, source)
    plan, generator = cut_plan(PLAN, r, NAME), torch.Generator().manual_seed(1)
    codes = tuple(torch.randint(0, 4, mask.shape, generator=generator).to(torch.uint8) * mask for mask in masks)
    if grid == "compact":
        return quantized_vectors.write(
            plan, codes, masks, torch.linspace(1e-3, 1e-4, r), torch.full((2, r), 96), source
        )
    parts, before = [], 0
    for _, first, last in plan_spans(plan):
        parts.append(torch.arange(last - first) // GROUP + before)
        before = int(parts[-1].max()) + 1
    groups = torch.cat(parts), torch.arange(n) // GROUP
    shapes = (m, before), (r, -(-n // GROUP))
    return quantized_groups.write(
        plan,
        codes,
        masks,
        torch.linspace(1, 0.1, r),
        tuple(torch.full(x, 0.01) for x in shapes),
        tuple(map(torch.ones, shapes)),
        groups,
        source,
    )


def disk_bytes(encoded: Encoded) -> int:
    return len(save({f"{NAME}.{key}": tensor for key, tensor in encoded.tensors.items()}, {"format": "pt"}))


def throughput(size: int, device: torch.device) -> list[list[str]]:
    """Seconds and MB/s of: a copy, unpacking codes, and base + dW for each encoding at nominal ratio 32."""
    base = torch.randn(size, size, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16).to(device)
    megabytes = base.nbytes / 1e6
    source = sparse_matrix(size, 32.0, 0.6, 1.0, Accounting(PLAN, "bytes", "compact"))
    dW = torch.randn(size, size, generator=torch.Generator().manual_seed(3)) * 1e-3
    cases = {
        "sparse, 16 bit": source,
        "grid: compact": quantized(source, "compact"),
        "grid: paper": quantized(source, "paper"),
        "BitDelta": signs.write(dW, 1e-3, name=NAME, keep_ratio=1.0, seed=0),
    }
    rows = [("copy of the weights", seconds(lambda: base.clone(), device))]
    U, V = torch.randn(size, source.facts["rank"]).to(device), torch.randn(source.facts["rank"], size).to(device)
    rows.append(("the product U V^T alone, dense, fp32", seconds(lambda: U @ V, device)))
    packed = torch.randint(0, 256, (size * size // 4,), dtype=torch.uint8).to(device)
    rows.append(("unpacking a 2-bit code for every weight", seconds(lambda: unpack(packed, 2, size * size), device)))
    for title, encoded in cases.items():
        there = encoded.to(device)
        rows.append((f"unpack + merge, {title}", seconds(lambda e=there: merged(base, e), device)))
    return [[title, f"{spent:.4f}", f"{megabytes / spent:,.0f}", f"{rows[0][1] / spent:.3f}"] for title, spent in rows]


def merged(base: Tensor, encoded: Encoded) -> Tensor:
    return base.float().add_(encoded.dense(NAME)).to(base.dtype)


def seconds(work: Callable, device: torch.device, repeats: int = 5) -> float:
    """The fastest of some runs, in CPU seconds, or seconds where a GPU computes."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    best = float("inf")
    for _ in range(repeats):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - started)
    return best


if __name__ == "__main__":
    run(main)
