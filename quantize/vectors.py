"""Singular triplets rounded to fitted grids, one for every vector, without calibration text."""

from dataclasses import dataclass

import torch
from torch import Tensor

from impart.bit_plan import BITS
from impart.encodings import quantized_vectors
from impart.encodings.encoded import Encoded, Triplets
from quantize.grid import fitted_grid, nearest_codes, top_codes, zero_byte


@dataclass(frozen=True)
class OnGrid:
    """Vectors (r, length) rounded to a fitted grid each: (codes - zero) * scale."""

    codes: Tensor  # (r, length), whole numbers
    scale: Tensor  # (r, 1)
    zero: Tensor  # (r, 1)

    def values(self) -> Tensor:
        """The rounded vectors (r, length)."""
        return (self.codes - self.zero) * self.scale


def on_grid(vectors: Tensor, bits: int | Tensor) -> OnGrid:
    """Vectors (r, length) in codes of `bits`, a number or one per vector."""
    scale, zero = (part[:, None] for part in fitted_grid(vectors, torch.ones_like(vectors), bits))
    return OnGrid(nearest_codes(vectors, scale, zero, top_codes(bits, vectors)[:, None]), scale, zero)


def rounded_triplets(triplets: Triplets, bits: Tensor) -> Encoded:
    """U (m, r), s (r,), V (n, r) in codes of bits (r,), descending."""
    U, s, V = triplets
    return stored_triplets(on_grid(U.T, bits), s, on_grid(V.T, bits), bits)


def stored_triplets(u: OnGrid, s: Tensor, v: OnGrid, bits: Tensor) -> Encoded:
    """Rounded vectors (r, m) and (r, n) with s (r,), as an artifact stores them; bits (r,) descending."""
    plan = [[b, int((bits == b).sum())] for b in BITS if (bits == b).any()]
    masks = [torch.ones_like(part.codes, dtype=torch.bool) for part in (u, v)]
    zeros = torch.stack([zero_byte(part.zero[:, 0], top_codes(bits, part.codes)) for part in (u, v)])
    steps = s * u.scale[:, 0] * v.scale[:, 0]
    source = Encoded("svd", (u.codes.shape[1], v.codes.shape[1]))
    return quantized_vectors.write(plan, (u.codes, v.codes), masks, steps, zeros, source)
