"""A matrix whose delta is zero: nothing is stored."""

import torch
from torch import Tensor

from impart.encodings.encoded import Encoded

TENSORS: dict[str, str] = {}


def write(shape: tuple[int, ...]) -> Encoded:
    """Nothing of a matrix of this shape."""
    m, n = shape
    return Encoded("empty", (m, n), {}, {"rank": 0, "kept": [0, 0], "bits": 16})


def dense(name: str, encoded: Encoded) -> Tensor:
    """Zeros (m, n) on the CPU."""
    return torch.zeros(encoded.shape, dtype=torch.float32)
