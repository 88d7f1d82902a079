"""U, s and V with every entry: U and V in one 16-bit or 32-bit dtype, s in fp32."""

import torch
from torch import Tensor

from impart.encodings.encoded import Encoded, Facts, Layout, Shape, Triplets, product

TENSORS = {"U": "U", "s": "singular values", "V": "V"}
FACTS = ("rank", "kept", "bits")
VALUE_BYTES = 4  # of a singular value


def write(U: Tensor, s: Tensor, V: Tensor, dtype: torch.dtype) -> Encoded:
    """U (m, r), s (r,) and V (n, r)."""
    (m, r), n = U.shape, len(V)
    # By rows, as they are written: a layer waits in memory until its shard is, and would be copied there all at once.
    tensors = {"U": U.to(dtype).contiguous(), "s": s.float(), "V": V.to(dtype).contiguous()}
    return Encoded("svd", (m, n), tensors, {"rank": r, "kept": [m * r, n * r], "bits": dtype.itemsize * 8})


def layout(shape: Shape, facts: Facts) -> Layout:
    """U (m, r), s (r,), V (n, r)."""
    (m, n), r = shape, facts["rank"]
    return {"U": ("F16 BF16 F32", (m, r)), "s": ("F32", (r,)), "V": ("F16 BF16 F32", (n, r))}


def factors(name: str, encoded: Encoded) -> Triplets:
    """U (m, r), s (r,), V (n, r) in fp32."""
    U, s, V = (encoded.tensors[suffix].float() for suffix in ("U", "s", "V"))
    return U, s, V


def dense(name: str, encoded: Encoded) -> Tensor:
    """dW (m, n) in fp32."""
    return product(factors(name, encoded))
