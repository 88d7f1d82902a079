"""Packed codes of the kept entries of U and V, section by section of a bit plan.

Codes stand plan entry by plan entry, all of U before all of V, within an entry singular vector by singular vector; each
section starts at a byte.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from impart.bit_plan import CutPlan, Plan, cut_plan, plan_bits, plan_spans
from impart.encodings.encoded import Encoded, Tensors
from impart.masks import scattered
from impart.packing import pack, packed_bytes, unpack


def packed_factors(codes: Sequence[Tensor], masks: Sequence[Tensor], plan: CutPlan) -> Tensor:
    """Codes and masks (r, m) of U and (r, n) of V -> bytes."""
    return torch.cat(
        [
            pack(part[first:last][mask[first:last]], bits)
            for part, mask in zip(codes, masks, strict=True)
            for bits, first, last in plan_spans(plan)
        ]
    )


def unpacked_factors(packed: Tensor, masks: Sequence[Tensor], plan: CutPlan) -> tuple[Tensor, Tensor]:
    """Codes (r, m), (r, n) as fp32, 0 where masked."""
    start, factors = 0, []
    for mask in masks:
        parts = []
        for bits, first, last in plan_spans(plan):
            codes, start = next_codes(packed, start, bits, int(mask[first:last].sum()))
            parts.append(codes)
        factors.append(scattered(torch.cat(parts), mask))
    if start != packed.numel():
        raise ValueError(f"the codes take {start} bytes, not {packed.numel()}")
    return factors[0], factors[1]


def next_codes(packed: Tensor, start: int, bits: int, count: int) -> tuple[Tensor, int]:
    """The next `count` codes from byte `start` on, and the byte after them."""
    end = start + packed_bytes(count, bits)
    return unpack(packed[start:end], bits, count), end


def shifted(codes: Tensor, mask: Tensor, zero: Tensor) -> Tensor:
    """codes - zero where kept, 0 elsewhere; in place."""
    return codes.sub_(zero).mul_(mask)


def of_source(
    encoding: str, plan: CutPlan, masks: Sequence[Tensor], tensors: Tensors, facts: dict[str, Any], source: Encoded
) -> Encoded:
    """A quantized matrix with what it keeps of the sparse one, and how many codes and bits it has."""
    if "keep" in source.tensors:
        tensors["keep"] = source.tensors["keep"]
    kept = [int(mask.sum()) for mask in masks]
    per_rank = sum((mask.sum(1).double().cpu() for mask in masks), torch.zeros(len(masks[0]), dtype=torch.float64))
    mean_bits = float(per_rank @ plan_bits(plan).double()) / max(sum(kept), 1)
    own = {"rank": len(per_rank), "kept": kept, "bits": round(mean_bits, 4), "plan": [list(part) for part in plan]}
    return Encoded(encoding, source.shape, tensors, {**own, **mask_origin(source), **facts})


def mask_origin(source: Encoded) -> dict[str, Any]:
    """What a quantized matrix keeps of the sparse one: where its mask comes from."""
    return {key: source.facts[key] for key in ("seed", "mask", "keep") if key in source.facts}


def zero_step(bits: Tensor) -> Tensor:
    """How far two neighbouring bytes of a fitted grid's zero lie apart: 2^b / 256 codes."""
    return 2.0**bits / 256


def group_count(columns: int, groupsize: int) -> int:
    """Groups of `groupsize` columns; one of all columns when it is not positive."""
    return 1 if groupsize <= 0 else -(-columns // groupsize)


def group_index(group: Tensor) -> Tensor:
    """Group numbers in as few bytes as they need."""
    return group.to(torch.uint8 if group.max() < 256 else torch.int16)


def index_bytes(groups: int) -> int:
    """Bytes of one stored group number."""
    return 1 if groups <= 256 else 2


def codes_bytes(kept: Sequence[np.ndarray], plan: Plan) -> int:
    """Bytes of the codes, given how many entries each column of U and of V keeps."""
    cut = cut_plan(plan, len(kept[0]), "")
    return sum(
        packed_bytes(int(counts[first:last].sum()), bits) for counts in kept for bits, first, last in plan_spans(cut)
    )


def expected_code_bits(p: np.ndarray, m: int, n: int, bits: np.ndarray) -> float:
    """Mean bits of all codes of U and V over the masks."""
    return float((m + n) * ((1.0 - p) * bits[: len(p)]).sum())
