"""What a compression method is: how the delta of one matrix becomes what an artifact stores.

A method is a frozen dataclass in a file of its own (sparsify/methods/, quantize/methods/). Its fields are its keys,
made by `impart.config.option`; its class attributes say what it is called and what it reads; `encode` does the work.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from impart.config import describe
from impart.encodings.encoded import Encoded, Triplets, product
from impart.svd import delta_svd


class Matrix(Protocol):
    """The delta of one matrix, as a method reads it."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    def dense(self) -> Tensor:
        """dW (m, n) in fp32."""

    def triplets(self, rank: int) -> Triplets | None:
        """The leading U (m, r), s (r,), V (n, r) of dW; None when dW is zero."""

    def weights(self) -> tuple[Tensor, Tensor]:
        """The base's and the fine-tuned weight (m, n), as stored, of a method with `reads_weights`."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How one matrix's delta is compressed. Subclasses define `name`, `label`, `encode`, and their keys as fields."""

    name: ClassVar[str]  # in YAML files, delta.json and names of folders
    label: ClassVar[str]  # in tables and figures
    needs_svd: ClassVar[bool] = True  # whether it reads triplets; else it reads dW itself
    reads_weights: ClassVar[bool] = False  # whether it reads the two weights themselves, bit for bit, and not dW
    usable_as_mask: ClassVar[bool] = False  # whether merge.py may apply it to a delta before merging

    @property
    def seeded(self) -> bool:
        """Whether another seed gives other bytes."""
        return True

    def resolved(self) -> Self:
        """The keys with defaults that depend on others filled in; InputError where they contradict each other."""
        return self

    def settings(self) -> dict[str, Any]:
        """What delta.json says of the keys: those that decide the bytes."""
        return dataclasses.asdict(self)

    def check(self, name: str, m: int, n: int) -> None:
        """InputError when the budget of an (m, n) matrix cannot be met."""

    def rank(self, name: str, m: int, n: int) -> int:
        """Number of leading triplets of an (m, n) matrix that `encode` reads."""
        return min(m, n)

    @property
    def needs_all(self) -> bool:
        """Whether `encode` wants what `fitted` gives, so that no matrix of a delta can be compressed alone."""
        return False

    def fitted(self, matrices: Sequence[Matrix]) -> "Method":
        """The method once it has seen all matrices of a delta; itself where each is compressed on its own."""
        return self

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        """The matrix as it is stored."""
        raise NotImplementedError

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """Upper estimate of what is stored of these matrices, by name."""
        raise NotImplementedError


def described_methods(known: Mapping[str, type[Method]]) -> list[str]:
    """The keys of each method, by name, for --help."""
    return [describe(cls, f"keys of method {name} ({cls.label}):") for name, cls in known.items()]


class _DeltaAlone:
    """A delta without the two weights that it is between."""

    def weights(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("methods that read weights get them from two models, and are no masks")


@dataclass(frozen=True)
class DenseMatrix(_DeltaAlone):
    """A delta that is at hand as dW (m, n)."""

    name: str
    dW: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.dW.shape
        return m, n

    def dense(self) -> Tensor:
        return self.dW

    def triplets(self, rank: int) -> Triplets | None:
        triplets = delta_svd(self.dW, rank)
        return triplets if float(triplets[1][0]) > 0 else None


@dataclass(frozen=True)
class FactoredMatrix(_DeltaAlone):
    """A delta that is at hand as U (m, r), s (r,), V (n, r)."""

    name: str
    factors: Triplets

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.factors[0]), len(self.factors[2])

    def dense(self) -> Tensor:
        return product(self.factors)

    def triplets(self, rank: int) -> Triplets | None:
        U, s, V = self.factors
        return (U[:, :rank], s[:rank], V[:, :rank]) if float(s[0]) > 0 else None
