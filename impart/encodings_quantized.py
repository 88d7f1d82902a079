"""Quantized encodings: codes of the kept entries packed at their bits, and the grids that the codes refer to.

    quantized_vectors   U, V with one grid per singular vector. The three steps that multiply a triplet (its singular value and
                        the scales of u_k and v_k) are stored as one number; a zero is a byte. About 6 bytes per triplet.
    quantized_groups    U, V with a grid for every row and group of columns, as GPTQ has them: exact, but larger
    quantized_entries   entries of dW itself with one grid per row or per row and group (DARE-Qt)
    signs               the signs of entries of dW and one scale (BitDelta)

Codes stand bit-plan entry by entry, all of U before all of V, within an entry singular vector by singular vector; each
section starts at a byte. Masks come from the seed.
"""

import numpy as np
import torch
from torch import Tensor

from impart.bit_plan import Plan, plan_bits, plan_spans
from impart.encoded import Encoded, Tensors
from impart.masks import LEVELS, MASKS, bernoulli_mask, scattered
from impart.packing import pack, packed_bytes, unpack


def zero_step(bits: Tensor) -> Tensor:
    """How far two neighbouring bytes of a fitted grid's zero lie apart: 2^b / 256 codes."""
    return 2.0**bits / 256


def factor_masks(name: str, entry: dict, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """Masks (r, m) of U and (r, n) of V, transposed, of a matrix stored as factors; dense ones keep everything."""
    m, n = entry["shape"]
    if "keep" not in tensors:
        return np.ones((entry["rank"], m), dtype=bool), np.ones((entry["rank"], n), dtype=bool)
    t = thresholds(tensors["keep"])
    make = MASKS[entry["mask"]]
    return make(entry["seed"], name, "U", t, m), make(entry["seed"], name, "V", t, n)


def thresholds(keep: Tensor) -> np.ndarray:
    """Keep thresholds t = 1 .. 65536 as stored in 16 bits."""
    return keep.cpu().numpy().astype(np.int64) + 1


def entry_masks(name: str, entry: dict) -> np.ndarray:
    """Mask (m, n) of a matrix whose entries themselves are kept at random."""
    m, n = entry["shape"]
    return bernoulli_mask(entry["seed"], name, "dW", np.full(m, entry["keep"]), n)


def vectors_encoded(
    shape: tuple[int, int],
    plan: Plan,
    codes: tuple[Tensor, Tensor],
    masks: tuple[Tensor, Tensor],
    steps: Tensor,
    zero_bytes: Tensor,
    source: Encoded,
) -> Encoded:
    """codes and masks (r, m), (r, n); steps (r,): s_k times both scales; zero_bytes (2, r); `source`: the sparse matrix."""
    largest = float(steps.abs().max())
    tensors = {
        "codes": torch.cat([_packed(c, k, plan) for c, k in zip(codes, masks, strict=True)]),
        "s": (steps / largest).to(torch.float16),
        "zeros": zero_bytes.to(torch.uint8).reshape(-1),
    }
    return _from_source("quantized_vectors", shape, plan, masks, tensors, {"s_1": largest}, source)


def groups_encoded(
    shape: tuple[int, int],
    plan: Plan,
    codes: tuple[Tensor, Tensor],
    masks: tuple[Tensor, Tensor],
    s: Tensor,
    scales: tuple[Tensor, Tensor],
    zeros: tuple[Tensor, Tensor],
    groups: tuple[Tensor, Tensor],
    source: Encoded,
) -> Encoded:
    """As above with grids (m, groups of U's columns) and (r, groups of V's columns), and the group of every column.

    U's groups are numbered through all plan entries; `scales` hold fp16 values and `zeros` whole numbers.
    """
    packed_zeros = [
        pack(zeros[0][:, _group_span(groups[0], first, last)], bits) for bits, first, last in plan_spans(plan)
    ]
    packed_zeros += [pack(zeros[1][first:last], bits) for bits, first, last in plan_spans(plan)]
    index = torch.cat(groups)
    tensors = {
        "codes": torch.cat([_packed(c, k, plan) for c, k in zip(codes, masks, strict=True)]),
        "s": (s / s[0]).to(torch.float16),
        "scales": torch.cat([x.reshape(-1) for x in scales]).to(torch.float16),
        "zeros": torch.cat(packed_zeros),
        "groups": index.to(torch.uint8 if index.max() < 256 else torch.int16),
    }
    return _from_source("quantized_groups", shape, plan, masks, tensors, {"s_1": float(s[0])}, source)


def entries_encoded(
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
        tensors["groups"] = group.to(torch.uint8 if group.max() < 256 else torch.int16)
    facts = {"kept": [int(mask.sum())], "bits": bits, "scale": unit}
    return Encoded("quantized_entries", source.shape, tensors, {**_origin(source), **facts})


def signs_encoded(dW: Tensor, mu: float, *, name: str, keep_ratio: float, seed: int) -> Encoded:
    """The signs of the entries of dW (m, n) that survive; each stands for +-mu over the keep ratio."""
    m, n = dW.shape
    t = max(1, round(keep_ratio * LEVELS))
    facts = {"seed": seed, "keep": t, "bits": 1, "mu": mu}
    mask = torch.from_numpy(entry_masks(name, {"shape": (m, n), **facts})).to(dW.device)
    kept = dW[mask] > 0
    return Encoded("signs", (m, n), {"codes": pack(kept, 1)}, {**facts, "kept": [len(kept)]})


def quantized_factors(name: str, entry: dict, tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), s (r,), V (n, r) in fp32; for one grid per vector the steps are in s and U, V hold code distances."""
    plan, masks = entry["plan"], factor_masks(name, entry, tensors)
    codes = _unpacked(tensors["codes"], masks, plan)
    if entry["encoding"] == "quantized_vectors":
        zeros = tensors["zeros"].view(2, -1).float() * zero_step(plan_bits(plan).to(tensors["zeros"].device))
        U, V = (_shifted(c, mask, zero[:, None]) for c, mask, zero in zip(codes, masks, zeros, strict=True))
        return U.T, tensors["s"].float() * entry["s_1"], V.T
    U, V = _decode_groups(entry, tensors, codes, masks)
    return U, tensors["s"].float() * entry["s_1"], V


def _decode_groups(
    entry: dict, tensors: Tensors, codes: tuple[Tensor, Tensor], masks: tuple[np.ndarray, np.ndarray]
) -> tuple[Tensor, Tensor]:
    m, r, plan = entry["shape"][0], entry["rank"], entry["plan"]
    groups = tensors["groups"].long()
    of_U, of_V = groups[:r], groups[r:]
    count_U, count_V = (int(x.max()) + 1 if len(x) else 0 for x in (of_U, of_V))
    scales = tensors["scales"].float()
    scale_U, scale_V = scales[: m * count_U].view(m, count_U), scales[m * count_U :].view(r, count_V)
    zero_U, zero_V = torch.empty_like(scale_U), torch.empty_like(scale_V)
    start = 0
    for bits, first, last in plan_spans(plan):
        span = _group_span(of_U, first, last)
        part, start = _next_codes(tensors["zeros"], start, bits, m * (span.stop - span.start))
        zero_U[:, span] = part.view(m, -1).float()
    for bits, first, last in plan_spans(plan):
        part, start = _next_codes(tensors["zeros"], start, bits, (last - first) * count_V)
        zero_V[first:last] = part.view(-1, count_V).float()
    U = _shifted(codes[0], masks[0], zero_U[:, of_U].T).T * scale_U[:, of_U]
    V = _shifted(codes[1], masks[1], zero_V[:, of_V]) * scale_V[:, of_V]
    return U, V.T


def _decode_factors(name: str, entry: dict, tensors: Tensors) -> Tensor:
    U, s, V = quantized_factors(name, entry, tensors)
    return (U * s) @ V.T


def _decode_entries(name: str, entry: dict, tensors: Tensors) -> Tensor:
    m, bits = entry["shape"][0], entry["bits"]
    mask = entry_masks(name, entry)
    codes = scattered(unpack(tensors["codes"], bits, entry["kept"][0]), mask)
    scale = tensors["scales"].float() * entry["scale"]
    if "groups" in tensors:
        group = tensors["groups"].long()
        zero = unpack(tensors["zeros"], bits, scale.numel()).view_as(scale).float()[:, group]
        return _shifted(codes, mask, zero) * scale[:, group]
    zero = tensors["zeros"].float() * zero_step(torch.tensor(bits))
    return _shifted(codes, mask, zero.view(m, 1)) * scale.view(m, 1)


def _decode_signs(name: str, entry: dict, tensors: Tensors) -> Tensor:
    codes = unpack(tensors["codes"], 1, entry["kept"][0])
    values = codes.float().mul_(2).sub_(1).mul_(entry["mu"] * LEVELS / entry["keep"])
    return values.view(entry["shape"]) if entry["keep"] == LEVELS else scattered(values, entry_masks(name, entry))


FACTORED = ("quantized_vectors", "quantized_groups")
DECODERS = {
    "quantized_vectors": _decode_factors,
    "quantized_groups": _decode_factors,
    "quantized_entries": _decode_entries,
    "signs": _decode_signs,
}


def _origin(source: Encoded) -> dict:
    """What a quantized matrix keeps of the sparse one: where its mask comes from."""
    return {key: source.facts[key] for key in ("seed", "mask", "keep") if key in source.facts}


def _from_source(
    encoding: str,
    shape: tuple[int, int],
    plan: Plan,
    masks: tuple[Tensor, Tensor],
    tensors: Tensors,
    facts: dict,
    source: Encoded,
) -> Encoded:
    if "keep" in source.tensors:
        tensors["keep"] = source.tensors["keep"]
    per_rank = sum(mask.sum(1).double().cpu() for mask in masks)  # (r,)
    kept = [int(mask.sum()) for mask in masks]
    mean_bits = float(per_rank @ plan_bits(plan).double()) / max(sum(kept), 1)
    return Encoded(
        encoding,
        shape,
        tensors,
        {
            "rank": len(per_rank),
            "kept": kept,
            "bits": round(mean_bits, 4),
            "plan": [list(part) for part in plan],
            **_origin(source),
            **facts,
        },
    )


def _group_span(group: Tensor, first: int, last: int) -> slice:
    """The groups of the columns first .. last - 1, which share them with no other column."""
    return slice(int(group[first:last].min()), int(group[first:last].max()) + 1)


def _packed(codes: Tensor, mask: Tensor, plan: Plan) -> Tensor:
    return torch.cat([pack(codes[first:last][mask[first:last]], bits) for bits, first, last in plan_spans(plan)])


def _unpacked(packed: Tensor, masks: tuple[np.ndarray, np.ndarray], plan: Plan) -> tuple[Tensor, Tensor]:
    """Codes (r, m), (r, n) as fp32, 0 where masked."""
    start, factors = 0, []
    for mask in masks:
        parts = []
        for bits, first, last in plan_spans(plan):
            codes, start = _next_codes(packed, start, bits, int(mask[first:last].sum()))
            parts.append(codes)
        factors.append(scattered(torch.cat(parts), mask))
    return factors[0], factors[1]


def _next_codes(packed: Tensor, start: int, bits: int, count: int) -> tuple[Tensor, int]:
    end = start + packed_bytes(count, bits)
    return unpack(packed[start:end], bits, count), end


def _shifted(codes: Tensor, mask: np.ndarray, zero: Tensor) -> Tensor:
    """codes - zero where kept, 0 elsewhere."""
    return codes.sub_(zero).mul_(torch.from_numpy(np.ascontiguousarray(mask)).to(codes.device))
