"""The masks of impart/masks.py, drawn where they are used: by NumPy on the CPU, by torch on a GPU, the same bits.

torch has no unsigned 64-bit arithmetic, but its signed one wraps in the same bits; a shift to the right takes a mask
against the sign, and unsigned draws compare as signed ones with their highest bit turned.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from impart.masks import GAMMA, LEVELS, MASKS, ROUNDS, kept_counts, stream_key

BLOCK_WORDS = 1 << 24  # drawn at a time: 128 MiB
DRAWS = {"bernoulli": torch.int16, "exact_count": torch.int32}


def draw_mask(
    kind: str,
    seed: int,
    name: str,
    factor: str,
    thresholds: np.ndarray,
    rows: int,
    device: torch.device | str,
    first: int = 0,
) -> Tensor:
    """Mask (r, rows) bool of a kind of `MASKS`, on the device: line k is column first + k, which keeps t_k / 65536."""
    if torch.device(device).type == "cpu":
        return torch.from_numpy(MASKS[kind](seed, name, factor, thresholds, rows, first))
    return torch_mask(kind, seed, name, factor, thresholds, rows, device, first)


def torch_mask(
    kind: str,
    seed: int,
    name: str,
    factor: str,
    thresholds: np.ndarray,
    rows: int,
    device: torch.device | str,
    first: int = 0,
) -> Tensor:
    """The same by torch alone, whatever the device."""
    t = np.asarray(thresholds, dtype=np.int64)
    mask = torch.empty(len(t), rows, dtype=torch.bool, device=device)
    limits = torch.from_numpy(t - 1 - LEVELS // 2 if kind == "bernoulli" else kept_counts(t, rows)).to(device)[:, None]
    for lines, draws in _blocks(stream_key(seed, name, factor), len(t), rows, DRAWS[kind], mask.device, first):
        if kind == "bernoulli":
            torch.le(draws, limits[lines].to(draws.dtype), out=mask[lines])
        else:  # the place of each draw among its column's, equal ones in the order of their rows
            place = draws.sort(dim=1, stable=True).indices.argsort(dim=1)
            torch.lt(place, limits[lines], out=mask[lines])
    return mask


def _blocks(
    key: np.uint64, columns: int, rows: int, dtype: torch.dtype, device: torch.device, first: int
) -> Iterator[tuple[slice, Tensor]]:
    """(lines, draws (lines, rows) shifted down by half their range) of the columns from `first` on."""
    words = -(-rows * dtype.itemsize // 8)
    step = max(1, BLOCK_WORDS // words)
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block = _splitmix64(key, (first + start) * words, (first + stop) * words, device).view(dtype)
        yield slice(start, stop), block.bitwise_xor_(torch.iinfo(dtype).min).view(stop - start, -1)[:, :rows]


def _splitmix64(key: np.uint64, start: int, stop: int, device: torch.device) -> Tensor:
    """Words start..stop - 1 of SplitMix64 started at `key`, as int64 of the same bits."""
    x = torch.arange(start + 1, stop + 1, dtype=torch.int64, device=device)
    x.mul_(_signed(GAMMA)).add_(_signed(key))
    for shift, factor in ROUNDS:
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << 64 - shift) - 1)).mul_(_signed(factor))
    return x


def _signed(word: np.uint64 | int) -> int:
    return int(np.uint64(word).astype(np.int64))
