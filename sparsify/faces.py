"""The two kinds of sparsification: to a number of values in 16 bit, and to a size that quantization will have.

A method of sparsify/methods/ derives from one of these classes, which say what all methods of the kind have in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from impart.bit_plan import PAPER_PLAN, Plan
from impart.config import option
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.method import Method
from sparsify.accounting import Accounting

GRIDS = ("paper", "compact")
ROOM = 1.1  # an estimate of bytes leaves a tenth for all that goes with the values


@dataclass(frozen=True, kw_only=True)
class PlainMethod(Method):
    """A method of sparsify.py: what it writes is not for quantization."""

    ratio_key: ClassVar[str] = "compression_ratio"


@dataclass(frozen=True, kw_only=True)
class SparseMethod(PlainMethod):
    """A method of sparsify.py with a ratio: what it keeps is stored in 16 bit."""

    usable_as_mask: ClassVar[bool] = True

    compression_ratio: float = option(help="CR: number of entries of dW over number of kept values, e.g. 32", low=1.0)

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        return int(ROOM * 2 * sum(m * n for m, n in shapes.values()) / self.compression_ratio)


@dataclass(frozen=True, kw_only=True)
class QuantizedMethod(Method):
    """A method of sparsify_quant.py: what it keeps is sized for the grids that sparse GPTQ will store."""

    ratio_key: ClassVar[str] = "compression_ratio_qt"
    masked: ClassVar[bool] = True  # whether each triplet has a keep threshold

    compression_ratio_qt: float = option(
        help="CR_qt: 16-bit size of dW over its quantized size, e.g. 32; default: compression_ratio", low=1.0
    )
    accounting: str = option(
        "auto",
        choices=("auto", "paper", "bytes"),
        help="paper: codes alone; bytes: every stored byte of the linear layers; "
        "auto: bytes with grid: compact, else paper",
    )
    grid: str = option(
        "paper",
        choices=GRIDS,
        help="how it will be quantized: paper: min-max grids for groups of columns; compact: one fitted grid per "
        "singular vector, which stores far fewer bytes (benchmarks/README.md)",
    )
    groupsize: int = option(
        128, help="columns that share a min-max grid (grid: paper); -1: all", unit="columns", low=-1
    )
    count_3bit_as_4: bool = option(False, help="count 3-bit codes as 4 bits, as the release does (accounting: paper)")

    def resolved(self) -> Self:
        if self.groupsize == 0:
            raise InputError("groupsize=0 means nothing; take -1 for one group of all columns")
        accounting = self.accounting
        if accounting == "auto":
            accounting = "bytes" if self.grid == "compact" else "paper"
        if self.count_3bit_as_4 and accounting != "paper":
            raise InputError("count_3bit_as_4 is the release's way of counting values: it needs accounting: paper")
        return replace(self, accounting=accounting)

    def settings(self) -> dict[str, Any]:
        """Keys that only one way of counting or one grid reads come last, and only with it."""
        values = super().settings()
        read = {"groupsize": self.grid == "paper", "count_3bit_as_4": self.accounting == "paper"}
        late = {key: values.pop(key) for key in read}
        return values | {key: value for key, value in late.items() if read[key]}

    @property
    def plan(self) -> Plan | None:
        """Bits of each triplet; None for a method that does not keep triplets."""
        return None

    @property
    def sized(self) -> Accounting:
        """How the size of a matrix is counted."""
        counted = (self.accounting, self.grid, self.groupsize, self.count_3bit_as_4, self.masked)
        return Accounting(self.plan, *counted)

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """16 bit for every code of at least 2."""
        return int(ROOM * 2 * 8 * sum(m * n for m, n in shapes.values()) / self.compression_ratio_qt)


def bit_plan_option() -> Any:
    """The key of methods whose triplets have bits."""
    return option(
        [list(part) for part in PAPER_PLAN],
        help="[bits, number of triplets] in the order of the singular values; the last number may be `rest`",
    )


def with_sizes(encoded: Encoded, codes: int, stored: int) -> Encoded:
    """The matrix with what it will take once it is quantized: bytes of its codes, and of everything."""
    return replace(encoded, facts={**encoded.facts, "quantized_codes": codes, "quantized_bytes": stored})
