"""One matrix as an artifact stores it."""

from dataclasses import dataclass, field

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Encoded:
    """One matrix as an artifact stores it. `tensors`: suffix -> tensor; `facts`: what delta.json keeps of it."""

    encoding: str
    shape: tuple[int, int]
    tensors: Tensors = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
