"""The entries of U and V that survive their masks (Eq. 2-6).

Stored: the kept values in fp16, column by column, all of U before all of V; s / s_1 in fp16; each column's keep
threshold in 16 bits. The masks come back from the seed, 1 / (1 - p) from the threshold.
"""

import numpy as np
import torch
from torch import Tensor

from impart.bit_plan import Plan
from impart.device_masks import draw_mask
from impart.encodings.encoded import Encoded, Facts, Layout, Shape, Triplets, product
from impart.encodings.masked import (
    THRESHOLD_BYTES,
    TRIPLET_BYTES,
    factor_masks,
    rescaling,
    stored_thresholds,
    thresholds,
)
from impart.masks import keep_thresholds, scattered

TENSORS = {"values": "kept values", "s": "singular values", "keep": "keep thresholds"}
FACTS = ("rank", "kept", "bits", "seed", "mask", "rescale", "s_1")


def write(U: Tensor, s: Tensor, V: Tensor, p: np.ndarray, *, seed: int, name: str, mask: str, rescale: bool) -> Encoded:
    """U (m, r), s (r,), V (n, r) under drop probabilities p (r,)."""
    (m, r), n = U.shape, len(V)
    t = keep_thresholds(p)
    kept = [
        factor.T.to(torch.float16)[draw_mask(mask, seed, name, letter, t, len(factor), factor.device)]
        for letter, factor in (("U", U), ("V", V))
    ]
    tensors = {"values": torch.cat(kept), "s": (s / s[0]).to(torch.float16), "keep": stored_thresholds(t)}
    facts = {"rank": r, "kept": [len(part) for part in kept], "bits": 16, "seed": seed, "mask": mask}
    return Encoded("sparse_svd", (m, n), tensors, {**facts, "rescale": rescale, "s_1": float(s[0])})


def layout(shape: Shape, facts: Facts) -> Layout:
    """The kept values of U and V in one vector, s (r,), thresholds (r,)."""
    return {"values": ("F16", (sum(facts["kept"]),)), "s": ("F16", (facts["rank"],)), "keep": ("U16", (facts["rank"],))}


def factors(name: str, encoded: Encoded) -> Triplets:
    """U (m, r), s (r,), V (n, r) in fp32, masked and rescaled."""
    facts, values = encoded.facts, encoded.tensors["values"]
    t, split = thresholds(encoded.tensors["keep"]), facts["kept"][0]
    parts = zip((values[:split], values[split:]), factor_masks(name, encoded), strict=True)
    U, V = (scattered(part, mask) for part, mask in parts)  # (r, m), (r, n)
    if facts["rescale"]:
        U, V = U.mul_(rescaling(t, U)), V.mul_(rescaling(t, V))  # Eq. 4-5
    return U.T, encoded.tensors["s"].float() * facts["s_1"], V.T


def dense(name: str, encoded: Encoded) -> Tensor:
    """dW^ (m, n) in fp32."""
    return product(factors(name, encoded))


def overhead_bytes(m: int, n: int, rank: int, plan: Plan, groupsize: int, masked: bool = True) -> int:
    """Everything but values and header of `rank` triplets of an (m, n) matrix."""
    return (TRIPLET_BYTES + THRESHOLD_BYTES * masked) * rank
