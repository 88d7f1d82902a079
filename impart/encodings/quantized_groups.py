"""U and V as codes with a grid for every row and group of columns, as GPTQ has them: exact, but larger."""

from collections.abc import Sequence

import torch
from torch import Tensor

from impart.bit_plan import CutPlan, Plan, cut_plan, plan_spans
from impart.encodings.codes import (
    group_count,
    group_index,
    index_bytes,
    next_codes,
    of_source,
    packed_factors,
    shifted,
    unpacked_factors,
)
from impart.encodings.encoded import Encoded, Facts, Layout, Shape, Triplets, product
from impart.encodings.masked import THRESHOLD_BYTES, TRIPLET_BYTES, factor_masks
from impart.packing import pack, packed_bytes

TENSORS = {
    "codes": "packed codes",
    "s": "singular values",
    "scales": "scales",
    "zeros": "zeros",
    "groups": "groups of columns",
    "keep": "keep thresholds",
}
OPTIONAL = ("keep",)
FACTS = ("rank", "kept", "bits", "plan", "s_1")


def write(
    plan: CutPlan,
    codes: Sequence[Tensor],
    masks: Sequence[Tensor],
    s: Tensor,
    scales: Sequence[Tensor],
    zeros: Sequence[Tensor],
    groups: Sequence[Tensor],
    source: Encoded,
) -> Encoded:
    """codes and masks (r, m), (r, n), grids (m, groups of U's columns) and (r, groups of V's), each column's group.

    U's groups are numbered through all plan entries; `scales` hold fp16 values and `zeros` whole numbers.
    """
    packed_zeros = [
        pack(zeros[0][:, _group_span(groups[0], first, last)], bits) for bits, first, last in plan_spans(plan)
    ]
    packed_zeros += [pack(zeros[1][first:last], bits) for bits, first, last in plan_spans(plan)]
    tensors = {
        "codes": packed_factors(codes, masks, plan),
        "s": (s / s[0]).to(torch.float16),
        "scales": torch.cat([scale.reshape(-1) for scale in scales]).to(torch.float16),
        "zeros": torch.cat(packed_zeros),
        "groups": group_index(torch.cat(list(groups))),
    }
    return of_source("quantized_groups", plan, masks, tensors, {"s_1": float(s[0])}, source)


def layout(shape: Shape, facts: Facts) -> Layout:
    """Codes, s (r,), the grids one after the other, groups (r + n,) of U's and V's columns, thresholds (r,)."""
    n, r = shape[1], facts["rank"]
    return {
        "codes": ("U8", (...,)),
        "s": ("F16", (r,)),
        "scales": ("F16", (...,)),
        "zeros": ("U8", (...,)),
        "groups": ("U8 I16", (r + n,)),
        "keep": ("U16", (r,)),
    }


def factors(name: str, encoded: Encoded) -> Triplets:
    """U (m, r), s (r,), V (n, r) in fp32."""
    masks, tensors = factor_masks(name, encoded), encoded.tensors
    codes = unpacked_factors(tensors["codes"], masks, encoded.facts["plan"])
    U, V = _dequantized(encoded, codes, masks)
    return U, tensors["s"].float() * encoded.facts["s_1"], V


def dense(name: str, encoded: Encoded) -> Tensor:
    """dW^ (m, n) in fp32."""
    return product(factors(name, encoded))


def overhead_bytes(m: int, n: int, rank: int, plan: Plan, groupsize: int, masked: bool = True) -> int:
    """Everything but codes and header of `rank` triplets of an (m, n) matrix."""
    if rank == 0:
        return 0
    cut = cut_plan(plan, rank, "")
    groups_V = group_count(n, groupsize)
    groups_U = [group_count(count, groupsize) for _, count in cut]
    grids = m * sum(groups_U) + rank * groups_V
    zeros = sum(packed_bytes(m * count, bits) for count, (bits, _) in zip(groups_U, cut, strict=True))
    zeros += sum(packed_bytes((last - first) * groups_V, bits) for bits, first, last in plan_spans(cut))
    index = index_bytes(max(groups_V, sum(groups_U)))
    return (TRIPLET_BYTES + THRESHOLD_BYTES * masked) * rank + 2 * grids + zeros + index * (n + rank)


def _dequantized(encoded: Encoded, codes: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """U (m, r) and V (n, r): the stored grids, unpacked in the order in which `write` packs them, on the codes."""
    m, r, plan, tensors = encoded.shape[0], encoded.facts["rank"], encoded.facts["plan"], encoded.tensors
    groups = tensors["groups"].long()
    of_U, of_V = groups[:r], groups[r:]
    count_U, count_V = (int(x.max()) + 1 if len(x) else 0 for x in (of_U, of_V))
    scales = tensors["scales"].float()
    scale_U, scale_V = scales[: m * count_U].view(m, count_U), scales[m * count_U :].view(r, count_V)
    zero_U, zero_V = torch.empty_like(scale_U), torch.empty_like(scale_V)
    start = 0
    for bits, first, last in plan_spans(plan):
        span = _group_span(of_U, first, last)
        part, start = next_codes(tensors["zeros"], start, bits, m * (span.stop - span.start))
        zero_U[:, span] = part.view(m, -1).float()
    for bits, first, last in plan_spans(plan):
        part, start = next_codes(tensors["zeros"], start, bits, (last - first) * count_V)
        zero_V[first:last] = part.view(-1, count_V).float()
    U = shifted(codes[0], masks[0], zero_U[:, of_U].T).T * scale_U[:, of_U]
    V = shifted(codes[1], masks[1], zero_V[:, of_V]) * scale_V[:, of_V]
    return U, V.T


def _group_span(group: Tensor, first: int, last: int) -> slice:
    """The groups of the columns first .. last - 1, which share them with no other column."""
    return slice(int(group[first:last].min()), int(group[first:last].max()) + 1)
