"""What a stored seed means: masks that are a pure function of (seed, matrix name, factor, column, row).

SplitMix64 (Steele, Lea, Flood 2014; as a counter-based generator) makes 64-bit words in integer arithmetic that NumPy
defines exactly, so the bits are the same on every machine and device (impart/device_masks.py draws them on a GPU) and
whatever the version of torch. Column k owns the words k w .. (k + 1) w - 1, as many as its rows need, and row i its
i-th draw of them, lowest bits first. Bernoulli: 16-bit draws; an entry is kept when its draw is below the column's
threshold t = 1..65536, so its keep probability is t / 65536 exactly. Exact count: 32-bit draws; the smallest ones are
kept, and of equal ones those of the first rows.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

LEVELS = 1 << 16  # of keep probability: 16 bits per column are stored

GAMMA = np.uint64(0x9E3779B97F4A7C15)
# x ^= x >> shift, then x *= factor; the last round has no factor of its own
ROUNDS = tuple((shift, np.uint64(c)) for shift, c in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)))
_BLOCK_WORDS = 1 << 15  # 256 KiB of draws at a time stay in the cache


def keep_thresholds(p: np.ndarray) -> np.ndarray:
    """Thresholds t (r,) int64 in 1..65536 of drop probabilities p (r,): 1 - p rounded to 1/65536, never to 0."""
    # departs from the paper: its p are real numbers; these take 16 bits a column, and the rescaling uses them exactly
    return np.clip(np.rint((1.0 - np.asarray(p, dtype=np.float64)) * LEVELS), 1, LEVELS).astype(np.int64)


def bernoulli_mask(seed: int, name: str, factor: str, thresholds: np.ndarray, rows: int, first: int = 0) -> np.ndarray:
    """Mask (r, rows) bool, transposed: line k is column first + k, each entry kept with probability t_k / 65536."""
    highest = (np.asarray(thresholds, dtype=np.int64) - 1).astype(np.uint16)  # (r,): t itself may be 65536
    mask = np.empty((len(highest), rows), dtype=bool)
    for lines, draws in _blocks(stream_key(seed, name, factor), len(highest), rows, "<u2", first):
        np.less_equal(draws, highest[lines, None], out=mask[lines])
    return mask


def exact_count_mask(
    seed: int, name: str, factor: str, thresholds: np.ndarray, rows: int, first: int = 0
) -> np.ndarray:
    """Mask (r, rows) bool, transposed: line k drops exactly int(rows * p_k) entries, as the authors' release does."""
    t = np.asarray(thresholds, dtype=np.int64)
    kept = kept_counts(t, rows)
    mask = np.ones((len(t), rows), dtype=bool)
    for lines, draws in _blocks(stream_key(seed, name, factor), len(t), rows, "<u4", first):
        for line, count, line_draws in zip(mask[lines], kept[lines], draws, strict=True):
            if count < rows:
                line[:] = _smallest(line_draws, int(count))
    return mask


def kept_counts(t: np.ndarray, rows: int) -> np.ndarray:
    """How many of `rows` entries an exact count keeps at thresholds t (r,)."""
    return rows - rows * (LEVELS - t) // LEVELS


MASKS = {"bernoulli": bernoulli_mask, "exact_count": exact_count_mask}


def scattered(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The inverse of `x[mask]`: (r, rows) in fp32 with zeros where the mask (r, rows) drops."""
    kept = int(mask.sum())
    if kept != len(values):
        raise RuntimeError(f"{len(values)} values for a mask that keeps {kept}")
    return torch.zeros(mask.shape, dtype=torch.float32, device=values.device).masked_scatter_(mask, values.float())


def _smallest(draws: np.ndarray, count: int) -> np.ndarray:
    """Mask (rows,) of the `count` >= 1 smallest draws (rows,); of equal ones the first."""
    last = np.partition(draws, count - 1)[count - 1]
    smallest = draws <= last
    surplus = np.count_nonzero(smallest) - count
    if surplus:
        smallest[np.flatnonzero(draws == last)[-surplus:]] = False
    return smallest


def _blocks(key: np.uint64, columns: int, rows: int, dtype: str, first: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
    """(lines, draws (lines, rows)) of the columns from `first` on, as many at a time as stay in the cache."""
    words = -(-rows * np.dtype(dtype).itemsize // 8)
    step = max(1, _BLOCK_WORDS // words)
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        block = _splitmix64(key, (first + start) * words, (first + stop) * words).astype("<u8", copy=False)
        yield slice(start, stop), block.view(dtype).reshape(stop - start, -1)[:, :rows]


def stream_key(seed: int, name: str, factor: str) -> np.uint64:
    # departs from the paper: seeds taken from singular values collide in 16 bit and hang on one generator of one device
    digest = hashlib.sha256(f"{seed}\n{name}\n{factor}".encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def _splitmix64(key: np.uint64, start: int, stop: int) -> np.ndarray:
    """Words start..stop - 1 of SplitMix64 started at `key`; uint64 wraps by definition."""
    x = np.arange(start + 1, stop + 1, dtype=np.uint64)
    x *= GAMMA
    x += key
    shifted = np.empty_like(x)
    for shift, factor in ROUNDS:
        np.right_shift(x, np.uint64(shift), out=shifted)
        x ^= shifted
        if factor != 1:
            x *= factor
    return x
