"""The header of a safetensors file, read without mapping the file: what stands in it, and how many bytes each takes.

Eight bytes say how long the header is, then comes JSON: name -> dtype, shape and place. All tensors follow without
gaps (https://huggingface.co/docs/safetensors).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from impart.dtypes import DTYPES
from impart.errors import InputError, reason_of

MAX_BYTES = 100_000_000  # as the library's own limit


@dataclass(frozen=True)
class ShardHeader:
    """`bytes` that stand before the tensors, and dtype code and shape of each tensor by its name."""

    bytes: int
    specs: dict[str, tuple[str, tuple[int, ...]]]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor."""
        return {name: math.prod(shape) * DTYPES[dtype].itemsize for name, (dtype, shape) in self.specs.items()}


def read_header(file: Path, what: str) -> ShardHeader:
    """The header of a regular file; InputError, which names `what`, unless it describes exactly this file's bytes."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size - 8, MAX_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            content = json.loads(stream.read(length))
        specs, end = _specs(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{what} is no readable safetensors file ({reason_of(error)}); fetch or make the delta again"
        ) from error
    if 8 + length + end != size:
        raise InputError(f"{what}: its tensors take {end} bytes, but it has {size - 8 - length}; fetch it again")
    return ShardHeader(8 + length, specs)


def _specs(content: dict) -> tuple[dict[str, tuple[str, tuple[int, ...]]], int]:
    """dtype and shape by name, and the bytes of all; ValueError unless the tensors follow one another."""
    content.pop("__metadata__", None)
    specs, end = {}, 0
    for name, entry in sorted(content.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(length) is int and length >= 0 for length in (*shape, start, stop)):
            raise ValueError(f"{name}: shape and offsets must be whole numbers")
        if start != end or stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"{name}: {stop - start} bytes at {start} for {dtype} of shape {list(shape)}")
        specs[name], end = (dtype, shape), stop
    return specs, end
