"""The bits of the fine-tuned weight, as steps from the base's along the numbers of their dtype.

Bits read as whole numbers order the floating-point numbers of one sign, so that fine-tuning moves most weights by a few
steps. Stored, compressed by Zstandard: the steps of all entries, or those of the changed entries and the gaps between
them. Bytes of equal significance stand together, and small steps of either sign have small numbers (zigzag).
"""

import numpy as np
import torch
import zstandard
from torch import Tensor

from impart.encodings.encoded import Encoded, Facts, Layout, Shape

# A matrix without changes stores nothing; gaps are stored where they pay.
TENSORS = {"steps": "steps", "gaps": "gaps"}
OPTIONAL = ("steps", "gaps")
FACTS = ("kept", "bits")
GAP = np.dtype(np.uint32)


def write(base: Tensor, tuned: Tensor, level: int) -> Encoded:
    """Both (m, n); `base` is taken in the dtype of `tuned`. `level`: of Zstandard, 1 to 22."""
    (m, n), old, new = tuned.shape, _as_integers(base.to(tuned.dtype)), _as_integers(tuned)
    steps = new - old  # modulo 2^bits
    changed = np.flatnonzero(steps)
    tensors = _streams(steps, changed, level) if len(changed) else {}
    return Encoded("lossless", (m, n), tensors, {"kept": [len(changed)], "bits": 8 * tuned.dtype.itemsize})


def layout(shape: Shape, facts: Facts) -> Layout:
    """Two compressed streams."""
    return {"steps": ("U8", (...,)), "gaps": ("U8", (...,))}


def restored(name: str, encoded: Encoded, base: Tensor) -> Tensor:
    """The fine-tuned weight (m, n), bit for bit, on the CPU; `base` (m, n) in the fine-tuned model's dtype."""
    tensors, weight = encoded.tensors, _as_integers(base).copy()
    (count,), bits = encoded.facts["kept"], encoded.facts["bits"]
    if bits != 8 * base.dtype.itemsize:
        raise ValueError(f"it has {bits} bits an entry, not those of {base.dtype}")
    if ("steps" in tensors) != bool(count):
        raise ValueError(f"{count} entries changed, and their steps are not stored so")
    if "gaps" in tensors:
        gaps = _decompressed(tensors["gaps"], count, GAP)
        weight[np.cumsum(gaps, dtype=np.int64) + np.arange(count)] += _steps(tensors["steps"], count, weight.dtype)
    elif count:
        weight += _steps(tensors["steps"], weight.size, weight.dtype)
    return torch.from_numpy(weight).view(base.dtype).view(base.shape)


def _streams(steps: np.ndarray, changed: np.ndarray, level: int) -> dict[str, Tensor]:
    """All steps, or those at the positions `changed` with the gaps before them: what takes fewer bytes."""
    whole = {"steps": _compressed(_zigzag(steps), level)}
    if 2 * len(changed) >= len(steps) or len(steps) > np.iinfo(GAP).max:  # gaps of an entry or two never pay
        return whole
    gaps = np.diff(changed, prepend=-1) - 1
    sparse = {"steps": _compressed(_zigzag(steps[changed]), level), "gaps": _compressed(gaps.astype(GAP), level)}
    return min(whole, sparse, key=lambda tensors: sum(tensor.nbytes for tensor in tensors.values()))


def _as_integers(tensor: Tensor) -> np.ndarray:
    """The bits of all entries as signed whole numbers, in row-major order."""
    flat = tensor.cpu().contiguous().view(-1)
    return flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]).numpy()


def _zigzag(steps: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2 ... as 0, 1, 2, 3 ... (the sign becomes the last bit)."""
    return (steps << 1) ^ (steps >> (8 * steps.itemsize - 1))


def _steps(stream: Tensor, count: int, dtype: np.dtype) -> np.ndarray:
    """The inverse of `_zigzag`, of a stored stream."""
    numbers = _decompressed(stream, count, np.dtype(f"u{dtype.itemsize}"))
    return ((numbers >> 1) ^ -(numbers & 1)).view(dtype)


def _compressed(numbers: np.ndarray, level: int) -> Tensor:
    """First the lowest byte of every number, then the next one of each, and so on."""
    planes = np.ascontiguousarray(numbers.view(np.uint8).reshape(len(numbers), -1).T)
    return torch.frombuffer(bytearray(zstandard.ZstdCompressor(level=level).compress(planes.data)), dtype=torch.uint8)


def _decompressed(stream: Tensor, count: int, dtype: np.dtype) -> np.ndarray:
    """The inverse of `_compressed`; ValueError for a stream that does not hold `count` numbers."""
    data = stream.cpu().numpy().tobytes()
    try:
        if zstandard.frame_content_size(data) != count * dtype.itemsize:  # or a few bytes might fill the memory
            raise ValueError(f"a stream does not hold {count} numbers")
        planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(data), dtype=np.uint8)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    return np.ascontiguousarray(planes.reshape(dtype.itemsize, count).T).view(dtype).reshape(count)
