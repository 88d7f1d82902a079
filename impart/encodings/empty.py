"""A matrix whose delta is zero: nothing is stored."""

import torch
from torch import Tensor

from impart.encodings.encoded import Encoded, Facts, Layout, Shape

TENSORS: dict[str, str] = {}
FACTS = ("rank", "kept", "bits")


def write(shape: tuple[int, ...]) -> Encoded:
    """Nothing of a matrix of this shape."""
    m, n = shape
    return Encoded("empty", (m, n), {}, {"rank": 0, "kept": [0, 0], "bits": 16})


def layout(shape: Shape, facts: Facts) -> Layout:
    """No tensor, whatever the shape."""
    return {}


def restored(name: str, encoded: Encoded, base: Tensor) -> Tensor:
    """The base's weight as it is: adding zeros in floating point would turn -0 into 0."""
    return base


def dense(name: str, encoded: Encoded) -> Tensor:
    """Zeros (m, n) on the CPU."""
    return torch.zeros(encoded.shape, dtype=torch.float32)
