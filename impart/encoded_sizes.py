"""What an encoding stores besides its codes or values, in bytes: so that a budget can be met before anything is written."""

import json

import numpy as np

from impart.bit_plan import Plan, cut_plan, plan_bits, plan_spans
from impart.packing import packed_bytes

PER_TRIPLET = {"sparse_svd": 2, "quantized_vectors": 4}  # s in 16 bit, and two bytes of zeros
PER_THRESHOLD = 2  # bytes of a triplet's keep threshold; dense triplets have none
TENSORS = {
    "sparse_svd": ("values", "s", "keep"),
    "quantized_vectors": ("codes", "s", "zeros", "keep"),
    "quantized_groups": ("codes", "s", "scales", "zeros", "groups", "keep"),
    "quantized_entries": ("codes", "scales", "zeros"),
    "sparse_entries": ("values",),
    "signs": ("codes",),
}
SHARD_HEADER = 48  # of a shard, whatever is in it


def header_bytes(name: str, encoding: str, size: int, masked: bool = True, shard_matrices: int = 7) -> int:
    """The part of a safetensors header that describes one matrix of about `size` bytes, to a few bytes."""
    offset = size * shard_matrices // 2
    entry = {"dtype": "F16", "shape": [size], "data_offsets": [offset, offset]}
    described = sum(
        len(json.dumps({f"{name}.{suffix}": entry}, separators=(",", ":"))) - 1
        for suffix in TENSORS[encoding]
        if masked or suffix != "keep"
    )
    return described + SHARD_HEADER // shard_matrices


def overhead_bytes(encoding: str, m: int, n: int, rank: int, plan: Plan, groupsize: int, masked: bool = True) -> int:
    """Everything but codes and header of `rank` triplets of an (m, n) matrix."""
    thresholds = PER_THRESHOLD * rank if masked else 0
    if encoding != "quantized_groups":
        return PER_TRIPLET[encoding] * rank + thresholds
    if rank == 0:
        return 0
    cut = cut_plan(plan, rank, "")
    groups_V = groups(n, groupsize)
    groups_U = [groups(count, groupsize) for _, count in cut]
    grids = m * sum(groups_U) + rank * groups_V
    zeros = sum(packed_bytes(m * count, bits) for count, (bits, _) in zip(groups_U, cut, strict=True))
    zeros += sum(packed_bytes((last - first) * groups_V, bits) for bits, first, last in plan_spans(cut))
    index = 1 if max(groups_V, sum(groups_U)) <= 256 else 2
    return 2 * rank + thresholds + 2 * grids + zeros + index * (n + rank)


def entries_overhead_bytes(grid: str, m: int, n: int, bits: int, groupsize: int) -> int:
    """Everything but codes and header of a matrix whose entries are quantized."""
    if grid == "compact":
        return 3 * m
    count = groups(n, groupsize)
    return 2 * m * count + packed_bytes(m * count, bits) + n * (1 if count <= 256 else 2)


def codes_bytes(kept: tuple[np.ndarray, np.ndarray], plan: Plan) -> int:
    """Bytes of the codes, given how many entries each column of U and of V keeps."""
    cut = cut_plan(plan, len(kept[0]), "")
    return sum(
        packed_bytes(int(counts[first:last].sum()), bits) for counts in kept for bits, first, last in plan_spans(cut)
    )


def expected_code_bits(p: np.ndarray, m: int, n: int, bits: np.ndarray) -> float:
    """Mean bits of all codes of U and V over the masks."""
    return float((m + n) * ((1.0 - p) * bits[: len(p)]).sum())


def groups(columns: int, groupsize: int) -> int:
    return 1 if groupsize <= 0 else -(-columns // groupsize)


def bits_up_to(plan: Plan, rank: int, name: str) -> np.ndarray:
    """Bits (rank,) of every triplet."""
    return plan_bits(cut_plan(plan, rank, name)).numpy()
