"""Algorithm 3: the budget is met for every shape, p keeps Algorithm 1's form, and what cannot be met is refused."""

import numpy as np
import pytest

from impart.bit_plan import PAPER_PLAN, checked_plan
from impart.errors import InputError
from sparsify.accounting import Accounting
from sparsify.allocation import (
    budget_bits,
    check_quantized,
    dense_rank,
    kept_rank,
    preprune_ratio,
    quantized_ratios,
    scaled_to,
    sparsity_ratios,
)

SHAPES = [
    (1024, 1024),
    (1024, 4096),
    (4096, 1024),
    (5120, 5120),
    (14336, 4096),
    (4096, 14336),
    (192, 512),
    (64, 192),
    (333, 777),
    (896, 128),
]
PLAN = checked_plan(PAPER_PLAN)


def spectrum(N, power=0.7, bulk=0.1):
    return np.arange(1, N + 1) ** -power + bulk


def ratios(m, n, cr, beta=0.6, C=1.0, accounting=None, s=None):
    accounting = accounting or Accounting(PLAN, count="paper")
    b, s = preprune_ratio(m, n, beta), spectrum(min(m, n)) if s is None else s
    return quantized_ratios(s, b, C, accounting.cost("w", m, n, cr), budget_bits(m, n, cr)), b, s


def stored_share(p, m, n):
    """The left side of the equation of Algorithm 3: sum (1 - p_k) b_k / 16 over N."""
    bits = np.array(([8] * 2 + [3] * 32 + [2] * max(len(p) - 34, 0))[: len(p)])
    return ((1 - p) * bits / 16).sum() / min(m, n)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cr", [24, 32])
@pytest.mark.parametrize(("beta", "C"), [(0.6, 1.0), (0.8, 0.5)])
def test_the_equation_holds_for_every_shape(shape, cr, beta, C):
    m, n = shape
    p, b, _ = ratios(m, n, cr, beta, C)
    one_minus_alpha = m * n / (cr * (m + n) * min(m, n))
    assert stored_share(p, m, n) == pytest.approx(one_minus_alpha, rel=1e-9)
    assert stored_share(p, m, n) <= one_minus_alpha * (1 + 1e-12)
    assert len(p) <= kept_rank(min(m, n), b)
    assert np.all((p >= 0) & (p < 1)) and np.all(np.diff(p) >= 0) and p[0] == 0


def test_it_is_algorithm_1_at_the_alpha_that_fits():
    m = n = 1024
    p, b, s = ratios(m, n, 32)
    fits = [
        alpha
        for alpha in np.linspace(b, 1, 2001)[:-1]
        if stored_share(sparsity_ratios(s, alpha, b, 1.0), m, n) <= stored_share(p, m, n)
    ]
    first = sparsity_ratios(s, fits[0], b, 1.0)
    assert abs(len(first) - len(p)) <= 2
    shared = min(len(first), len(p))
    assert np.allclose(first[:shared], p[:shared], atol=4e-3)


def test_counting_three_bits_as_four_keeps_less():
    as_3 = stored_share(ratios(1024, 1024, 32)[0], 1024, 1024)
    as_4 = stored_share(
        ratios(1024, 1024, 32, accounting=Accounting(PLAN, count="paper", count_3bit_as_4=True))[0], 1024, 1024
    )
    assert as_4 < as_3 * 0.99


def test_golden():
    # 4 x 4 at ratio 1: 256 bits. Two columns of 8 bit, dense, are 2 * 8 * 8 = 128, five of 3 bit at most 2 remain:
    # 4 triplets in all: 128 + 2 * 24 = 176 bits, which fit whole.
    p, _, _ = ratios(4, 4, 1, beta=0.0)
    assert p.tolist() == [0, 0, 0, 0]
    # at ratio 2 there are 128 bits for them
    p, _, _ = ratios(4, 4, 2, beta=0.0, C=1.0, s=np.array([4.0, 2, 1, 1]))
    bits = np.array([8, 8, 3, 3])[: len(p)]
    assert 8 * ((1 - p) * bits).sum() == pytest.approx(128)
    ratio = p[1:] / p[1]
    assert np.allclose(ratio, [1, 1.5, 1.5][: len(ratio)])  # 1 - s_k / s_1 = 1/2, 3/4, 3/4


def test_a_delta_of_low_rank_is_kept_whole():
    s = np.zeros(1024)
    s[:5] = [5, 4, 3, 2, 1]
    p, _, _ = ratios(1024, 1024, 32, s=s)
    assert p.tolist() == [0] * 5


def test_no_column_fits():
    assert len(ratios(64, 64, 500)[0]) == 0


def test_scaling_spends_the_budget():
    p = np.array([0.0, 0.4, 0.5])
    cost = lambda q: (1 - q).sum()  # noqa: E731
    assert cost(scaled_to(p, cost, 2.5)) == pytest.approx(2.5)  # less dropped
    assert cost(scaled_to(p, cost, 1.5)) == pytest.approx(1.5)  # more dropped
    assert scaled_to(np.zeros(3), cost, 2.0).tolist() == [0, 0, 0]


def test_dense_rank_is_the_largest_that_fits():
    accounting = Accounting(PLAN, count="paper")
    for m, n, cr in ((1024, 1024, 32), (192, 512, 16)):
        cost, budget = accounting.cost("w", m, n, cr), budget_bits(m, n, cr)
        r = dense_rank(min(m, n), cost, budget)
        assert cost(np.zeros(r)) <= budget < cost(np.zeros(r + 1))


@pytest.mark.parametrize(("m", "n", "cr", "beta"), [(1024, 1024, 8, 0.8), (4096, 1024, 8, 0.8), (333, 777, 12, 0.9)])
def test_too_much_pre_pruning_names_the_largest_beta(m, n, cr, beta):
    accounting = Accounting(PLAN, count="paper")
    cost = accounting.cost("w", m, n, cr)
    with pytest.raises(
        InputError, match=rf"w \({m} x {n}\): preprune_ratio beta={beta:g} leaves .* take beta <= "
    ) as error:
        check_quantized("w", m, n, cr, beta, cost)
    largest = float(str(error.value).split("beta <= ")[1].split()[0])
    check_quantized("w", m, n, cr, largest, cost)
    with pytest.raises(InputError):
        check_quantized("w", m, n, cr, largest + 0.01, cost)


def test_a_ratio_too_low_for_the_bits():
    accounting = Accounting(PLAN, count="paper")
    with pytest.raises(InputError, match="even all 1024 singular vectors take less"):
        check_quantized("w", 1024, 1024, 3, 0.0, accounting.cost("w", 1024, 1024, 3))
