"""Bit plans: the authors' keys, the paper's plan, and plans that mean nothing."""

import pytest

from impart.bit_plan import PAPER_PLAN, checked_plan, cut_plan, plan_bits, plan_of_columns, plan_spans
from impart.errors import InputError


def test_the_paper_s_plan_is_cut_at_the_rank():
    assert cut_plan(PAPER_PLAN, 100, "w") == [[8, 2], [3, 32], [2, 66]]
    assert cut_plan(PAPER_PLAN, 34, "w") == [[8, 2], [3, 32]]
    assert cut_plan(PAPER_PLAN, 7, "w") == [[8, 2], [3, 5]]
    assert cut_plan(PAPER_PLAN, 1, "w") == [[8, 1]]
    assert cut_plan(PAPER_PLAN, 0, "w") == []


def test_the_authors_keys_say_the_same():
    plan = plan_of_columns({16: 0, 8: 2, 4: 0, 3: 32, 2: 5120}, "attn")
    assert plan == [[8, 2], [3, 32], [2, 5120]]
    assert cut_plan(plan, 100, "w") == cut_plan(PAPER_PLAN, 100, "w")
    assert plan_of_columns({16: None, 8: None, 4: None, 3: None, 2: None}, "mlp") is None


def test_bits_and_spans():
    cut = cut_plan(PAPER_PLAN, 40, "w")
    assert plan_bits(cut).tolist() == [8] * 2 + [3] * 32 + [2] * 6
    assert list(plan_spans(cut)) == [(8, 0, 2), (3, 2, 34), (2, 34, 40)]


def test_a_plan_that_does_not_cover_the_ranks():
    with pytest.raises(InputError, match=r"w has 40 triplets, but the bit plan \[\[8, 2\], \[3, 32\]\] covers only 34"):
        cut_plan([[8, 2], [3, 32]], 40, "w")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([], "not empty"),
        ([[8, 2], 3], "but it holds 3"),
        ([[8, 2, 1]], "but it holds"),
        ([[5, 2]], "codes of 5 bits are not supported; take 8, 4, 3, 2"),
        ([[8, "rest"], [2, 1]], "rest may stand in the last one only"),
        ([[8, -1]], "is not such a pair"),
        ([[8, True]], "is not such a pair"),
    ],
)
def test_plans_that_mean_nothing(plan, message):
    with pytest.raises(InputError, match=message):
        checked_plan(plan)


def test_keys_that_mean_nothing():
    with pytest.raises(InputError, match="attn_fp16_col=3: triplets in 16 bit are not supported"):
        plan_of_columns({16: 3, 8: 2}, "attn")
    with pytest.raises(InputError, match="give no triplet any bits"):
        plan_of_columns({8: 0, 2: 0}, "mlp")
