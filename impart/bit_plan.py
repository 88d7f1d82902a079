"""Bit plans: how many bits the codes of each singular triplet have.

A plan is a list of [bits, number of triplets] in the order of the singular values; the last number may be `rest`. The
paper's is [[8, 2], [3, 32], [2, rest]]. The authors' keys say the same per kind of matrix: attn_int8_col: 2,
attn_int3_col: 32 ...
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from impart.errors import InputError

Plan = Sequence[Sequence[int | str]]  # as it is written, with `rest`
CutPlan = Sequence[Sequence[int]]  # of one matrix, whose rank is known

PAPER_PLAN = ((8, 2), (3, 32), (2, "rest"))
BITS = (8, 4, 3, 2)
REST = "rest"


def checked_plan(plan: Plan, key: str = "bit_plan") -> list[list[int | str]]:
    """The plan as lists; InputError when it is not one."""
    rule = f"{key} must be a list of [bits, number of triplets] like [[8, 2], [3, 32], [2, rest]]"
    checked: list[list[int | str]] = []
    for position, part in enumerate(plan):
        if not isinstance(part, list | tuple) or len(part) != 2:
            raise InputError(f"{rule}, but it holds {part!r}")
        bits, count = part
        if bits not in BITS:
            raise InputError(f"{key}: codes of {bits!r} bits are not supported; take {', '.join(map(str, BITS))}")
        if count == REST and position + 1 == len(plan):
            checked.append([bits, REST])
        elif isinstance(count, int) and not isinstance(count, bool) and count >= 0:
            checked.append([bits, count])
        else:
            raise InputError(f"{rule}, but {part!r} is not such a pair (rest may stand in the last one only)")
    if not checked:
        raise InputError(f"{rule}, and not empty")
    return checked


def plan_of_columns(columns: Mapping[int, int | None], kind: str) -> list[list[int | str]] | None:
    """The plan behind the authors' keys {bits: number} of `kind` (attn or mlp); None when no key is given.

    16 stands for their fp16 columns, of which there must be none. The lowest bits take the rest, as their 5120 of
    2 bits do.
    """
    given = {bits: count for bits, count in columns.items() if count is not None}
    if not given:
        return None
    if given.get(16):
        raise InputError(
            f"{kind}_fp16_col={given[16]}: triplets in 16 bit are not supported; set it to 0 and add them to "
            f"{kind}_int8_col"
        )
    plan: list[list[int | str]] = [[bits, given[bits]] for bits in BITS if given.get(bits)]
    if not plan:
        raise InputError(
            f"the keys {kind}_int*_col give no triplet any bits; the paper has 2 of 8, 32 of 3, the rest of 2"
        )
    return plan


def cut_plan(plan: Plan, rank: int, name: str) -> list[list[int]]:
    """The part of the plan that the first `rank` triplets of a matrix use; InputError when it does not cover them."""
    cut: list[list[int]] = []
    left = rank
    for bits, count in plan:
        here = left if count == REST else min(int(count), left)
        if here > 0:
            cut.append([int(bits), here])
            left -= here
    if left:
        raise InputError(
            f"{name} has {rank} triplets, but the bit plan {[list(part) for part in plan]} covers only "
            f"{rank - left}; raise its last number or make it `rest`"
        )
    return cut


def plan_bits(plan: CutPlan) -> torch.Tensor:
    """Bits (r,) of every triplet of a cut plan."""
    return torch.tensor([bits for bits, count in plan for _ in range(count)], dtype=torch.long)


def plan_spans(plan: CutPlan) -> Iterator[tuple[int, int, int]]:
    """(bits, first, last) of every entry of a cut plan."""
    first = 0
    for bits, count in plan:
        yield bits, first, first + count
        first += count
