"""U and V as codes with one grid per singular vector.

The three steps that multiply a triplet (its singular value and the scales of u_k and v_k) are stored as one number; a
zero is a byte. About 6 bytes per triplet besides the codes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from impart.bit_plan import CutPlan, Plan, plan_bits
from impart.encodings.codes import of_source, packed_factors, shifted, unpacked_factors, zero_step
from impart.encodings.encoded import Encoded, Facts, Layout, Shape, Triplets, product
from impart.encodings.masked import THRESHOLD_BYTES, TRIPLET_BYTES, factor_masks

TENSORS = {"codes": "packed codes", "s": "singular values", "zeros": "zeros", "keep": "keep thresholds"}
OPTIONAL = ("keep",)
FACTS = ("rank", "kept", "bits", "plan", "s_1")
ZERO_BYTES = 2  # of a triplet: one for u_k, one for v_k


def write(
    plan: CutPlan, codes: Sequence[Tensor], masks: Sequence[Tensor], steps: Tensor, zero_bytes: Tensor, source: Encoded
) -> Encoded:
    """codes, masks (r, m), (r, n); steps (r,): s_k times both scales; zero_bytes (2, r); `source`: the sparse one."""
    largest = float(steps.abs().max())
    tensors = {
        "codes": packed_factors(codes, masks, plan),
        "s": (steps / largest).to(torch.float16),
        "zeros": zero_bytes.to(torch.uint8).reshape(-1),
    }
    return of_source("quantized_vectors", plan, masks, tensors, {"s_1": largest}, source)


def layout(shape: Shape, facts: Facts) -> Layout:
    """Codes, s (r,), zeros (2 r,) of u_k and v_k, thresholds (r,)."""
    r = facts["rank"]
    return {"codes": ("U8", (...,)), "s": ("F16", (r,)), "zeros": ("U8", (2 * r,)), "keep": ("U16", (r,))}


def factors(name: str, encoded: Encoded) -> Triplets:
    """U (m, r), s (r,), V (n, r) in fp32: the steps are in s, and U, V hold distances in codes."""
    plan, masks, tensors = encoded.facts["plan"], factor_masks(name, encoded), encoded.tensors
    codes = unpacked_factors(tensors["codes"], masks, plan)
    zeros = tensors["zeros"].view(2, -1).float() * zero_step(plan_bits(plan).to(tensors["zeros"].device))
    U, V = (shifted(c, mask, zero[:, None]) for c, mask, zero in zip(codes, masks, zeros, strict=True))
    return U.T, tensors["s"].float() * encoded.facts["s_1"], V.T


def dense(name: str, encoded: Encoded) -> Tensor:
    """dW^ (m, n) in fp32."""
    return product(factors(name, encoded))


def overhead_bytes(m: int, n: int, rank: int, plan: Plan, groupsize: int, masked: bool = True) -> int:
    """Everything but codes and header of `rank` triplets of an (m, n) matrix."""
    return (TRIPLET_BYTES + ZERO_BYTES + THRESHOLD_BYTES * masked) * rank
