"""One sparse matrix -> one quantized matrix, given the Hessian of its inputs.

V first, with H_V = 2 X X^T of the layer's inputs; then U, whose inputs y = diag(s) V_q^T x are linear in x, so that
their Hessian diag(s) V_q^T H_V V_q diag(s) needs no further pass through the layer.

A Hessian without a Cholesky factor does not end a run: its damping is raised in the steps of `DAMPINGS`, and where that
is not enough the matrix is rounded to nearest. `remedies` says for the report which of it happened.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from impart.architecture import is_attention
from impart.bit_plan import CutPlan, Plan, cut_plan, plan_bits, plan_spans
from impart.encodings import quantized_entries, quantized_groups, quantized_vectors
from impart.encodings.encoded import Encoded
from impart.encodings.masked import factor_masks, stored_entry_mask
from quantize.grid import fp16_unit, top_codes, zero_byte
from quantize.sparse_gptq import (
    Inverse,
    NotPositiveDefinite,
    Quantized,
    inverse_of,
    nearest,
    quantize_groups,
    quantize_vectors,
)

log = logging.getLogger(__name__)
DAMPINGS = (0.01, 0.1, 1.0)  # shares of H's mean diagonal that are tried where the given one, if lower, is not enough


@dataclass(frozen=True)
class Rule:
    """How matrices are quantized."""

    grid: str  # "paper": min-max in groups of columns; "compact": one fitted grid per singular vector
    attn_plan: Plan  # of matrices under self_attn
    mlp_plan: Plan  # of all others
    entry_bits: int  # of matrices that are stored as entries of dW (DARE)
    groupsize: int = 128
    damping: float = 0.01
    act_order: bool = True

    def plan(self, name: str, rank: int) -> list[list[int]]:
        """The plan of one matrix, cut off at its rank."""
        return cut_plan(self.attn_plan if is_attention(name) else self.mlp_plan, rank, name)


def rank_hessian(H: Tensor, Vq: Tensor, s: Tensor) -> Tensor:
    """H_U (r, r) = diag(s) V_q^T H V_q diag(s) for H (n, n), V_q transposed (r, n), s (r,)."""
    return s[:, None] * (Vq @ H @ Vq.T) * s


def safe_inverse(H: Tensor, rule: Rule, names: Sequence[str], what: str = "inputs") -> Inverse:
    """`inverse_of` with the rule's damping, else with the first higher one of DAMPINGS that is enough, else `nearest`.

    `names` are the matrices that it is for, and `what` H (n, n) was gathered of: both stand in the warning.
    """
    reason = ""
    # departs from the paper: it does not treat a Hessian without a Cholesky factor
    for damping in (rule.damping, *(step for step in DAMPINGS if step > rule.damping)):
        try:
            inverse = inverse_of(H, damping, rule.act_order)
        except NotPositiveDefinite as error:
            reason = reason or str(error)
            continue
        if damping > rule.damping:
            log.warning("%s (Hessian of the %s): %s; damping %g is taken here", ", ".join(names), what, reason, damping)
        return inverse
    log.warning("%s (Hessian of the %s): %s; rounded to nearest instead", ", ".join(names), what, reason)
    return nearest(H, rule.act_order)


def remedies(rule: Rule, inverses: Iterable[Inverse]) -> dict[str, Any]:
    """What a row of the report says of Hessians that needed help: the highest damping, or that H had no part."""
    dampings = [inverse.damping for inverse in inverses]
    found: dict[str, Any] = {"rounded_to_nearest": True} if None in dampings else {}
    highest = max((damping for damping in dampings if damping is not None), default=0.0)
    return found | ({"damping": highest} if highest > rule.damping else {})


def quantize_matrix(name: str, source: Encoded, H: Tensor, inverse: Inverse, rule: Rule) -> tuple[Encoded, dict]:
    """The quantized matrix, and for the report its errors and `remedies`.

    Errors are relative output errors on the calibration inputs, in all and per plan entry; none where H has NaN or Inf.
    """
    if source.encoding == "empty":
        return source, {}
    if source.encoding == "sparse_entries":
        encoded, errors = _quantize_entries(name, source, H, inverse, rule)
        return encoded, _finite(errors) | remedies(rule, [inverse])
    U, s, V = source.factors(name)  # (m, r), (r,), (n, r)
    masks = factor_masks(name, source)
    plan = rule.plan(name, len(s))
    quantize = _quantize_vectors if rule.grid == "compact" else _quantize_groups
    encoded, Uq, Vq, of_ranks = quantize(name, source, (U, s, V.T), masks, plan, H, inverse, rule)
    errors = factor_errors(U, V.T, Uq, Vq, s, H, plan)
    return encoded, _finite(errors) | remedies(rule, [inverse, *of_ranks])


def _finite(errors: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in errors.items() if math.isfinite(value)}


def _rank_inverse(H_U: Tensor, of_inputs: Inverse, rule: Rule, name: str, what: str) -> Inverse:
    """`safe_inverse` of the Hessian of U's inputs; where V's inputs have no usable one, U's have none either."""
    if of_inputs.damping is None:
        return nearest(H_U, rule.act_order)
    return safe_inverse(H_U, rule, [name], what)


def _quantize_vectors(
    name: str,
    source: Encoded,
    triplets: tuple[Tensor, Tensor, Tensor],
    masks: tuple[Tensor, Tensor],
    plan: CutPlan,
    H: Tensor,
    inverse: Inverse,
    rule: Rule,
) -> tuple[Encoded, Tensor, Tensor, list[Inverse]]:
    U, s, Vt = triplets
    bits = plan_bits(plan).to(U.device)
    V = quantize_vectors(Vt, masks[1], inverse, bits, along_rows=True)
    Vq = V.values()
    # departs from the paper: the plan entries of U pass together, so that the errors of one reach the others
    H_U = rank_hessian(H, Vq, s)
    of_ranks = _rank_inverse(H_U, inverse, rule, name, "ranks")
    quantized = quantize_vectors(U, masks[0].T, of_ranks, bits, along_rows=False)
    steps = s * V.scale[:, 0] * quantized.scale[0]
    top = top_codes(bits, Vt)
    zeros = torch.stack([zero_byte(quantized.zero[0], top), zero_byte(V.zero[:, 0], top)])
    encoded = quantized_vectors.write(plan, (quantized.codes.T, V.codes), masks, steps, zeros, source)
    return encoded, quantized.values(), Vq, [of_ranks]


def _quantize_groups(
    name: str,
    source: Encoded,
    triplets: tuple[Tensor, Tensor, Tensor],
    masks: tuple[Tensor, Tensor],
    plan: CutPlan,
    H: Tensor,
    inverse: Inverse,
    rule: Rule,
) -> tuple[Encoded, Tensor, Tensor, list[Inverse]]:
    U, s, Vt = triplets
    units = fp16_unit(U), fp16_unit(Vt)  # powers of two, which s takes
    U, Vt, s = U / units[0], Vt / units[1], s * (units[0] * units[1])
    V = quantize_groups(Vt, masks[1], inverse, plan_bits(plan).to(U.device), rule.groupsize)
    Vq = V.values()
    H_U = rank_hessian(H, Vq, s)
    parts: list[Quantized] = []
    of_ranks: list[Inverse] = []
    for bits, first, last in plan_spans(plan):  # each with its own order, damping and groups
        H_part, what = H_U[first:last, first:last], f"ranks {first} to {last - 1}"
        of_ranks.append(_rank_inverse(H_part, inverse, rule, name, what))
        quantized = quantize_groups(U[:, first:last], masks[0].T[:, first:last], of_ranks[-1], bits, rule.groupsize)
        before = sum(other.scale.shape[1] for other in parts)
        parts.append(replace(quantized, group=quantized.group + before))
    codes, scale, zero = (torch.cat([getattr(part, key) for part in parts], 1) for key in ("codes", "scale", "zero"))
    group = torch.cat([part.group for part in parts])
    encoded = quantized_groups.write(
        plan, (codes.T, V.codes), masks, s, (scale, V.scale), (zero, V.zero), (group, V.group), source
    )
    Uq = Quantized(codes, scale, zero, group, masks[0].T).values()
    return encoded, Uq * units[0], Vq * units[1], of_ranks


def _quantize_entries(name: str, source: Encoded, H: Tensor, inverse: Inverse, rule: Rule) -> tuple[Encoded, dict]:
    W, bits = source.dense(name), rule.entry_bits  # (m, n), masked and rescaled
    mask = stored_entry_mask(name, source)
    unit = fp16_unit(W)
    W = W / unit
    if rule.grid == "compact":
        found = quantize_vectors(W, mask, inverse, bits, along_rows=True)
        zero, group = zero_byte(found.zero[:, 0], top_codes(bits, W)), None
    else:
        found = quantize_groups(W, mask, inverse, bits, rule.groupsize)
        zero, group = found.zero, found.group
    encoded = quantized_entries.write(found.codes, mask, bits, found.scale, zero, group, unit, source)
    Wq = found.values()
    inner = float((Wq * W).sum() / W.square().sum().clamp(min=1e-30))
    return encoded, {"error": relative_error(Wq - W, W, H), "inner_product": inner}


def relative_error(E: Tensor, W: Tensor, H: Tensor) -> float:
    """sqrt(tr(E H E^T) / tr(W H W^T)): the output error of E relative to W's outputs, on the calibration inputs."""
    return float((((E @ H) * E).sum() / ((W @ H) * W).sum().clamp(min=1e-30)).clamp(min=0).sqrt())


def factor_errors(U: Tensor, Vt: Tensor, Uq: Tensor, Vq: Tensor, s: Tensor, H: Tensor, plan: CutPlan) -> dict:
    """Relative output errors of U_q diag(s) V_q^T, of the whole and of each plan entry relative to its own part.

    `inner_product` is <W_q, W> / <W, W> of the whole: below 1 the grids shrink the delta, which a small error does not
    show.
    """
    Z = torch.cat([Vq, Vt]) * torch.cat([s, s])[:, None]  # (2r, n)
    G = Z @ H @ Z.T
    r, A = len(s), torch.cat([Uq, -U], 1)  # E = A Z

    def error(index: Tensor) -> float:
        both = torch.cat([index, index + r])
        difference = ((A[:, both] @ G[both][:, both]) * A[:, both]).sum()
        whole = ((U[:, index] @ G[r + index][:, r + index]) * U[:, index]).sum()
        return float((difference / whole.clamp(min=1e-30)).clamp(min=0).sqrt())

    ranks = torch.arange(r, device=U.device)
    per_entry = {f"error_{bits}bit": error(ranks[first:last]) for bits, first, last in plan_spans(plan)}
    US = U * s
    inner = ((Uq * s).T @ US * (Vq @ Vt.T)).sum() / (US.T @ US * (Vt @ Vt.T)).sum().clamp(min=1e-30)
    return {"error": error(ranks), "inner_product": float(inner), **per_entry}
