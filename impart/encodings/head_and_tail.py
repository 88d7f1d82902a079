"""The sum of two parts: a head of few singular triplets, and entries of what it leaves of dW, the tail.

Each part is stored as an encoding of its own, under `head.` and `tail.`: delta.json says which, with its facts.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from impart.encodings import quantized_vectors, signs, sparse_entries, svd
from impart.encodings.encoded import Encoded, Facts, Layout, Shape, encoding_of
from impart.encodings.headers import header_bytes

PARTS = {
    "head": {"svd": svd, "quantized_vectors": quantized_vectors},
    "tail": {"sparse_entries": sparse_entries, "signs": signs},
}
TENSORS = {
    f"{part}.{suffix}": f"{title} of the {part}"
    for part, encodings in PARTS.items()
    for encoding in encodings.values()
    for suffix, title in encoding.TENSORS.items()
}
OPTIONAL = tuple(TENSORS)  # each part has those of its encoding
FACTS = ("kept", "bits")


def write(head: Encoded, tail: Encoded) -> Encoded:
    """Both parts of one matrix (m, n)."""
    parts = {"head": head, "tail": tail}
    tensors = {f"{part}.{suffix}": tensor for part, one in parts.items() for suffix, tensor in one.tensors.items()}
    kept = [*head.facts["kept"], *tail.facts["kept"]]
    bits = sum(sum(one.facts["kept"]) * one.facts["bits"] for one in parts.values()) / max(sum(kept), 1)
    facts: dict[str, Any] = {part: {"encoding": one.encoding, **one.facts} for part, one in parts.items()}
    return Encoded("head_and_tail", head.shape, tensors, {"kept": kept, "bits": round(bits, 4), **facts})


def part_of(encoded: Encoded, part: str) -> Encoded:
    """One part, as if it were all that is stored of the matrix."""
    start, facts = f"{part}.", encoded.facts[part]
    tensors = {key.removeprefix(start): tensor for key, tensor in encoded.tensors.items() if key.startswith(start)}
    return Encoded(facts["encoding"], encoded.shape, tensors, facts)


def layout(shape: Shape, facts: Facts) -> Layout:
    """The tensors of both parts."""
    return {
        f"{part}.{suffix}": spec
        for part in PARTS
        for suffix, spec in encoding_of(facts[part]["encoding"]).layout(shape, facts[part]).items()
    }


def dense(name: str, encoded: Encoded) -> Tensor:
    """dW^ (m, n) in fp32."""
    head, tail = (part_of(encoded, part).dense(name) for part in PARTS)
    return head.add_(tail)


def expected_header_bytes(name: str, encodings: Mapping[str, str], size: int, head: float = 0.5) -> int:
    """The part of a shard's header that describes one matrix of about `size` bytes, of which `head` are the head's.

    `encodings`: part -> encoding. A `head` of 0 or of 1 is one part alone, which is stored under the matrix's name.
    No head has keep thresholds.
    """
    names = {"tail": name} if head == 0 else {"head": name} if head == 1 else {part: f"{name}.{part}" for part in PARTS}
    return sum(header_bytes(names[part], encodings[part], size, ("keep",)) for part in names)
