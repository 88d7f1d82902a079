"""What a stored seed means: masks that are a pure function of (seed, matrix name, factor, column, row).

Every entry has a 16-bit draw that SplitMix64 (Steele, Lea, Flood 2014; as a counter-based generator) makes from the
entry's address, in 64-bit integer arithmetic that NumPy defines exactly, so the bits are the same on every machine,
whatever the device of the weights and whatever the version of torch. An entry is kept when its draw is below the
column's threshold t = 1..65536; its keep probability is t / 65536 exactly.
"""

import hashlib

import numpy as np
import torch

LEVELS = 1 << 16  # of keep probability: 16 bits per column are stored

_GAMMA, _MIX_1, _MIX_2 = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_BLOCK_WORDS = 1 << 14  # 128 KiB of draws at a time stay in the cache


def keep_thresholds(p: np.ndarray) -> np.ndarray:
    """Thresholds t (r,) int64 in 1..65536 of drop probabilities p (r,): 1 - p rounded to 1/65536, never to 0."""
    return np.clip(np.rint((1.0 - np.asarray(p, dtype=np.float64)) * LEVELS), 1, LEVELS).astype(np.int64)


def bernoulli_mask(seed: int, name: str, factor: str, thresholds: np.ndarray, rows: int, first: int = 0) -> np.ndarray:
    """Mask (r, rows) bool, transposed: line k is column first + k, each entry kept with probability t_k / 65536."""
    t = np.asarray(thresholds, dtype=np.int64)  # (r,)
    high, low = (t >> 8).astype(np.uint8), (t & 255).astype(np.uint8)
    words = -(-rows // 8)
    mask = np.empty((len(t), words * 8), dtype=bool)
    key, tie_key = _key(seed, name, factor), _key(seed, name, factor + " low bits")
    lines = max(1, _BLOCK_WORDS // words)
    for start in range(0, len(t), lines):
        stop = min(start + lines, len(t))
        address = np.arange((first + start) * words, (first + stop) * words, dtype=np.uint64)
        draws = _splitmix64(key, address).astype("<u8", copy=False).view(np.uint8).reshape(stop - start, words * 8)
        block = mask[start:stop]
        np.less(draws, high[start:stop, None], out=block)
        # The 1 in 256 entries whose high byte equals the threshold's are decided by a second byte.
        tied = np.flatnonzero(draws == high[start:stop, None])
        line = tied // (words * 8)
        second = _splitmix64(tie_key, tied.astype(np.uint64) + np.uint64((first + start) * words * 8)) >> np.uint64(56)
        block.reshape(-1)[tied] = second < low[start:stop][line]
    mask[t == LEVELS] = True  # 65536 does not fit the two bytes: keep all
    return mask[:, :rows]


def exact_count_mask(seed: int, name: str, factor: str, thresholds: np.ndarray, rows: int) -> np.ndarray:
    """Mask (r, rows) bool, transposed: line k drops exactly int(rows * p_k) entries, as the authors' release does."""
    t = np.asarray(thresholds, dtype=np.int64)
    kept = rows - rows * (LEVELS - t) // LEVELS  # (r,)
    mask = np.zeros((len(t), rows), dtype=bool)
    key, row_bits = _key(seed, name, factor), np.uint64(24)
    for k, count in enumerate(kept):
        draws = _splitmix64(key, np.arange(k * rows, (k + 1) * rows, dtype=np.uint64))
        order = (draws >> row_bits << row_bits) | np.arange(rows, dtype=np.uint64)  # distinct: the row is in it
        mask[k, np.argpartition(order, count - 1)[:count] if count < rows else slice(None)] = True
    return mask


MASKS = {"bernoulli": bernoulli_mask, "exact_count": exact_count_mask}


def kept_values(x: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
    """The entries of x (r, rows) that the mask keeps, line by line, as one vector."""
    return x[torch.from_numpy(np.ascontiguousarray(mask)).to(x.device)]


def scattered(values: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
    """The inverse of `kept_values`: (r, rows) in fp32 with zeros where the mask drops."""
    keep = torch.from_numpy(np.ascontiguousarray(mask)).to(values.device)
    dense = torch.zeros(keep.shape, dtype=torch.float32, device=values.device)
    dense[keep] = values.float()
    return dense


def _key(seed: int, name: str, factor: str) -> np.uint64:
    digest = hashlib.sha256(f"{seed}\n{name}\n{factor}".encode()).digest()
    return np.uint64(int.from_bytes(digest[:8], "little"))


def _splitmix64(key: np.uint64, counter: np.ndarray) -> np.ndarray:
    """Output number `counter` + 1 of SplitMix64 started at `key`; uint64 wraps by definition."""
    x = counter + np.uint64(1)
    x *= _GAMMA
    x += key
    x ^= x >> np.uint64(30)
    x *= _MIX_1
    x ^= x >> np.uint64(27)
    x *= _MIX_2
    x ^= x >> np.uint64(31)
    return x
