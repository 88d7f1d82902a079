"""Where a matrix lies: it is a stored tensor, one slice of the 3-D tensor that holds the experts of a layer, or rows.

`experts.gate_up_proj[3]` is the fourth expert's matrix (m, n), for outputs W x. Families that compute x W store each
slice as (n, m); such a slice is read and written through its transpose, so that its delta is that of the 2-D twin.
Of an embedding with more rows in the fine-tuned model, `embed_tokens.weight[:32000]` is what the base has as well, and
`embed_tokens.weight[32000:]` are the new tokens.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

SLICE = re.compile(r"^(?P<tensor>.+)\[(?:(?P<index>\d+)|:(?P<stop>\d+)|(?P<start>\d+):)\]$")
Part = int | slice  # of a stored tensor: an expert, or rows


@dataclass(frozen=True)
class Place:
    """The part of a stored tensor that is one matrix; index None: all of it."""

    tensor: str
    index: Part | None = None
    transposed: bool = False

    def of(self, whole: Tensor) -> Tensor:
        """The matrix as a view of the stored tensor: what is copied into it is written to the tensor."""
        return whole if self.index is None else self.turned(whole[self.index])

    def turned(self, piece: Tensor) -> Tensor:
        """The stored slice as the matrix, a view, or the other way round."""
        return piece.T if self.transposed else piece

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The matrix's shape in a tensor of that shape."""
        if self.index is None:
            return stored
        if isinstance(self.index, slice):
            return len(range(stored[0])[self.index]), *stored[1:]
        return stored[:0:-1] if self.transposed else stored[1:]


def slice_names(tensor: str, count: int) -> list[str]:
    """The names of the matrices of a stored 3-D tensor."""
    return [f"{tensor}[{index}]" for index in range(count)]


def head_and_rest(tensor: str, rows: int) -> tuple[str, str]:
    """The names of the first rows of a stored tensor, and of those after them."""
    return f"{tensor}[:{rows}]", f"{tensor}[{rows}:]"


def split_name(name: str) -> tuple[str, Part | None]:
    """The stored tensor that a matrix lies in and its part of it, None for a tensor that is the matrix."""
    found = SLICE.match(name)
    if found is None:
        return name, None
    if found["index"] is not None:
        return found["tensor"], int(found["index"])
    start, stop = (None if found[end] is None else int(found[end]) for end in ("start", "stop"))
    return found["tensor"], slice(start, stop)


def tensor_of(name: str) -> str:
    """The stored tensor that a matrix lies in."""
    return split_name(name)[0]


def by_tensor(names: Iterable[str]) -> dict[str, list[str]]:
    """The matrices by the stored tensor that they lie in, in their order."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(tensor_of(name), []).append(name)
    return found
