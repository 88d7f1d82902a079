"""What a shard's header takes: part of a matrix's bytes as any other."""

import json
from collections.abc import Container

from impart.encodings.encoded import encoding_of

SHARD_HEADER = 48  # bytes of a shard's header, whatever is in it


def header_bytes(name: str, encoding: str, size: int, without: Container[str] = (), shard_matrices: int = 7) -> int:
    """The part of a safetensors header that describes one matrix of about `size` bytes, to a few bytes.

    `without`: suffixes of its encoding that this matrix does not store.
    """
    offset = size * shard_matrices // 2
    entry = {"dtype": "F16", "shape": [size], "data_offsets": [offset, offset]}
    suffixes = [suffix for suffix in encoding_of(encoding).TENSORS if suffix not in without]
    described = (len(json.dumps({f"{name}.{suffix}": entry}, separators=(",", ":"))) - 1 for suffix in suffixes)
    return sum(described) + SHARD_HEADER // shard_matrices
