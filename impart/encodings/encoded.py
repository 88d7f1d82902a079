"""One matrix as an artifact stores it."""

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from impart.dtypes import all_finite
from impart.errors import InputError, reason_of

Tensors = dict[str, Tensor]
Triplets = tuple[Tensor, Tensor, Tensor]  # U (m, r), s (r,), V (n, r)
Shape = tuple[int, int]
Facts = Mapping[str, Any]  # of one matrix in delta.json
# suffix -> (dtype codes of safetensors, shape); `...` stands for a length that only decoding tells
Layout = dict[str, tuple[str, tuple[Any, ...]]]


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
        """dW (m, n) in fp32, on the device of the tensors; InputError where it takes the base's weight."""
        if not self.holds_delta:
            raise InputError(
                f"{name} is stored as {self.encoding}, from which only the base's weight makes a delta: give the base"
            )
        with _refusing_damage(name):
            dW = encoding_of(self.encoding).dense(name, self)
        refuse_non_finite(name, dW)
        return dW

    def restored(self, name: str, base: Tensor) -> Tensor:
        """The fine-tuned weight (m, n), bit for bit, from the base's in the fine-tuned model's dtype.

        Only where `is_exact`; on the device of `base`.
        """
        with _refusing_damage(name):
            return encoding_of(self.encoding).restored(name, self, base).to(base.device)

    def factors(self, name: str) -> Triplets:
        """U (m, r), s (r,), V (n, r) in fp32, masked and rescaled; ValueError where the encoding has none."""
        module = encoding_of(self.encoding)
        if not hasattr(module, "factors"):
            raise ValueError(f"{name} is stored as {self.encoding}, which has no factors")
        with _refusing_damage(name):
            factors = module.factors(name, self)
        for factor in factors:
            refuse_non_finite(name, factor)
        return factors

    def to(self, device: torch.device | str) -> "Encoded":
        """The same with its tensors on the device."""
        moved = {suffix: tensor.to(device) for suffix, tensor in self.tensors.items()}
        return Encoded(self.encoding, self.shape, moved, self.facts)

    @property
    def holds_delta(self) -> bool:
        """Whether dW can be decoded without the base."""
        return hasattr(encoding_of(self.encoding), "dense")

    @property
    def is_exact(self) -> bool:
        """Whether `restored` gives the fine-tuned weight's bits; else the weight is the base's + dW, rounded."""
        return hasattr(encoding_of(self.encoding), "restored")

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        return next((tensor.device for tensor in self.tensors.values()), torch.device("cpu"))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@functools.cache
def encoding_of(name: str) -> ModuleType:
    """The module of an encoding; InputError for a name that this software does not know."""
    known = name.isidentifier() and importlib.util.find_spec(f"impart.encodings.{name}") is not None
    module = importlib.import_module(f"impart.encodings.{name}") if known else None
    if not hasattr(module, "TENSORS"):
        raise InputError(f"encoding {name!r} is not known here; the delta is damaged, or of a newer version: update")
    return module  # type: ignore[return-value]  # mypy does not see that None has no TENSORS


@contextlib.contextmanager
def _refusing_damage(name: str) -> Iterator[None]:
    """InputError for stored tensors that contradict each other: codes that are too short, a group that is not there."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, IndexError, RuntimeError) as error:
        raise InputError(
            f"{name} cannot be decoded from what is stored of it ({reason_of(error)}); fetch or make the delta again"
        ) from error


def refuse_non_finite(name: str, decoded: Tensor) -> None:
    """InputError when a decoded matrix or factor of it holds NaN or Inf."""
    if not all_finite(decoded):
        raise InputError(
            f"{name} decodes to NaN or Inf in {str(decoded.dtype).removeprefix('torch.')}; a model with it computes "
            "nothing: fetch or make the delta again"
        )


def product(factors: Triplets) -> Tensor:
    """dW^ = U^ diag(s) V^^T (m, n)."""
    U, s, V = factors
    return (U * s) @ V.T
