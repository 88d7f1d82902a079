"""Singular triplets rounded to fitted grids, one for every vector, without calibration text."""

import torch
from torch import Tensor

from impart.bit_plan import CutPlan, plan_bits
from impart.encodings import quantized_vectors
from impart.encodings.encoded import Encoded, Triplets
from quantize.grid import fitted_grid, nearest_codes, top_codes, zero_byte


def rounded_triplets(triplets: Triplets, plan: CutPlan) -> Encoded:
    """U (m, r), s (r,), V (n, r) in the bits of the plan, which covers r triplets."""
    U, s, V = triplets
    bits = plan_bits(plan).to(U.device)
    codes, scales, zeros = zip(*(_rounded(factor.T.contiguous(), bits) for factor in (U, V)), strict=True)
    masks = [torch.ones_like(part, dtype=torch.bool) for part in codes]
    source = Encoded("svd", (len(U), len(V)))
    return quantized_vectors.write(plan, codes, masks, s * scales[0] * scales[1], torch.stack(zeros), source)


def _rounded(vectors: Tensor, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors (r, entries) -> codes (r, entries), scales (r,), bytes of the zeros (r,)."""
    scale, zero = fitted_grid(vectors, torch.ones_like(vectors), bits)
    top = top_codes(bits, vectors)
    return nearest_codes(vectors, scale[:, None], zero[:, None], top[:, None]), scale, zero_byte(zero, top)
