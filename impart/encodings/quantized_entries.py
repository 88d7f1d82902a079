"""Entries of dW itself as codes with one grid per row, or one per row and group of columns (DARE-Qt)."""

import torch
from torch import Tensor

from impart.encodings.codes import group_count, group_index, index_bytes, mask_origin, shifted, zero_step
from impart.encodings.encoded import Encoded, Facts, Layout, Shape
from impart.encodings.masked import stored_entry_mask
from impart.masks import scattered
from impart.packing import pack, packed_bytes, unpack

# Groups are stored only where columns share grids.
TENSORS = {"codes": "packed codes", "scales": "scales", "zeros": "zeros", "groups": "groups of columns"}
OPTIONAL = ("groups",)
FACTS = ("seed", "keep", "kept", "bits", "scale")


def write(
    codes: Tensor,
    mask: Tensor,
    bits: int,
    scale: Tensor,
    zero: Tensor,
    group: Tensor | None,
    unit: float,
    source: Encoded,
) -> Encoded:
    """codes, mask (m, n); a fitted grid per row (scale, zero byte (m, 1), no groups) or one per row and group.

    Scales are counted in `unit`, which brings them into the range of fp16 whatever the size of dW.
    """
    tensors = {"codes": pack(codes[mask], bits), "scales": scale.to(torch.float16)}
    if group is None:
        tensors["zeros"] = zero.to(torch.uint8)
    else:
        tensors["zeros"] = pack(zero, bits)
        tensors["groups"] = group_index(group)
    facts = {"kept": [int(mask.sum())], "bits": bits, "scale": unit}
    return Encoded("quantized_entries", source.shape, tensors, {**mask_origin(source), **facts})


def layout(shape: Shape, facts: Facts) -> Layout:
    """Codes of the kept entries; grids by row, as many as there are groups; each column's group."""
    m, n = shape
    codes = packed_bytes(facts["kept"][0], facts["bits"])
    return {
        "codes": ("U8", (codes,)),
        "scales": ("F16", (m, ...)),
        "zeros": ("U8", (...,)),
        "groups": ("U8 I16", (n,)),
    }


def dense(name: str, encoded: Encoded) -> Tensor:
    """dW^ (m, n) in fp32."""
    (m, _), facts, tensors = encoded.shape, encoded.facts, encoded.tensors
    mask, bits = stored_entry_mask(name, encoded), facts["bits"]
    codes = scattered(unpack(tensors["codes"], bits, facts["kept"][0]), mask)
    scale = tensors["scales"].float() * facts["scale"]
    if "groups" in tensors:
        group = tensors["groups"].long()
        zero = unpack(tensors["zeros"], bits, scale.numel()).view_as(scale).float()[:, group]
        return shifted(codes, mask, zero) * scale[:, group]
    zero = tensors["zeros"].float() * zero_step(torch.tensor(bits))
    return shifted(codes, mask, zero.view(m, 1)) * scale.view(m, 1)


def overhead_bytes(grid: str, m: int, n: int, bits: int, groupsize: int) -> int:
    """Everything but codes and header of an (m, n) matrix: a grid per row (compact), or per row and group (paper)."""
    if grid == "compact":
        return 3 * m  # a scale in 16 bit and a zero in 8
    count = group_count(n, groupsize)
    return 2 * m * count + packed_bytes(m * count, bits) + n * index_bytes(count)
