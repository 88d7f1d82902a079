"""One matrix as an artifact stores it."""

import importlib
import importlib.util
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from impart.errors import InputError

Tensors = dict[str, Tensor]
Triplets = tuple[Tensor, Tensor, Tensor]  # U (m, r), s (r,), V (n, r)


@dataclass(frozen=True)
class Encoded:
    """One matrix as an artifact stores it. `tensors`: suffix -> tensor; `facts`: what delta.json keeps of it.

    Masks are a function of the matrix's name, so that whoever decodes gives it.
    """

    encoding: str
    shape: tuple[int, int]
    tensors: Tensors = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def dense(self, name: str) -> Tensor:
        """dW (m, n) in fp32, on the device of the tensors."""
        return encoding_of(self.encoding).dense(name, self)

    def factors(self, name: str) -> Triplets:
        """U (m, r), s (r,), V (n, r) in fp32, masked and rescaled; ValueError where the encoding has none."""
        module = encoding_of(self.encoding)
        if not hasattr(module, "factors"):
            raise ValueError(f"{name} is stored as {self.encoding}, which has no factors")
        return module.factors(name, self)

    def to(self, device: torch.device | str) -> "Encoded":
        """The same with its tensors on the device."""
        moved = {suffix: tensor.to(device) for suffix, tensor in self.tensors.items()}
        return Encoded(self.encoding, self.shape, moved, self.facts)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def encoding_of(name: str) -> ModuleType:
    """The module of an encoding; InputError for a name that this software does not know."""
    known = name.isidentifier() and importlib.util.find_spec(f"impart.encodings.{name}") is not None
    module = importlib.import_module(f"impart.encodings.{name}") if known else None
    if not hasattr(module, "TENSORS"):
        raise InputError(f"encoding {name!r} is not known here; the delta is damaged, or of a newer version: update")
    return module  # type: ignore[return-value]  # mypy does not see that None has no TENSORS


def product(factors: Triplets) -> Tensor:
    """dW^ = U^ diag(s) V^^T (m, n)."""
    U, s, V = factors
    return (U * s) @ V.T
