"""Budgets and Algorithm 1: exact for every shape, equal to a plain-Python loop, and worked by hand."""

import itertools
import re

import numpy as np
import pytest

from impart.errors import InputError
from sparsify.allocation import (
    check_feasible,
    kept_rank,
    largest_beta,
    lowrank_rank,
    preprune_ratio,
    sparsity_ratios,
    uniform_ratios,
    uv_sparsity,
)

SHAPES = [
    (1024, 1024),
    (4096, 4096),
    (5120, 5120),
    (8192, 8192),
    (1024, 4096),
    (4096, 1024),
    (14336, 4096),
    (4096, 14336),
    (13824, 5120),
    (5120, 13824),
    (11008, 4096),
    (1024, 8192),
    (28672, 8192),
    (512, 3584),
    (18944, 3584),
    (256, 2048),
    (16384, 2048),
    (64, 176),
    (1, 7),
    (3, 2),
]
RATIOS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 7.3)


def algorithm_1(s, alpha, beta, C):
    """Algorithm 1 as METHOD section 3 tells it, in Python's floats, one step after the other."""
    K = int(len(s) * (1 - beta))
    gamma = (alpha - beta) / (1 - beta)
    if K == 0 or s[0] == 0:
        return []
    p = [(1 - (s[k] / s[0]) ** C) * gamma for k in range(K)]

    def mean():
        total = 0.0
        for value in p:
            total += value
        return total / K

    boundary = K
    while mean() < gamma:
        boundary -= 1
        p[boundary] = 1.0
    return [value for value in p[:boundary] if value != 1.0]


def spectrum(generator, N):
    """One of the kinds that deltas have and some that they should not: power laws, plateaus, ties, near-rank-one."""
    kind = generator.integers(5)
    k = np.arange(1, N + 1)
    if kind == 0:
        s = k ** -generator.uniform(0.1, 2.5)
    elif kind == 1:
        s = generator.random(N) * generator.uniform(1e-6, 1e3)
    elif kind == 2:
        s = generator.integers(1, 6, N).astype(float)
    elif kind == 3:
        s = np.full(N, generator.uniform(1e-5, 1.0))
    else:
        s = np.concatenate(([1.0], np.full(N - 1, generator.uniform(1e-8, 1e-2))))
    return np.sort(s)[::-1].astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("m, n", SHAPES)
def test_the_budget_is_exact_for_every_shape(m, n):
    N = min(m, n)
    for cr in RATIOS:
        alpha = uv_sparsity(m, n, cr)
        assert 0 <= alpha <= 1
        assert (1 - alpha) * (m + n) * N == pytest.approx(m * n / cr, rel=1e-9)


def test_square_matrices_have_the_papers_alpha_and_beta():
    for cr in RATIOS:
        assert uv_sparsity(4096, 4096, cr) == pytest.approx((1 + 1 - 1 / cr) / 2, abs=1e-15)  # footnote 2
    for beta in (0.0, 0.6, 0.7, 0.8):
        assert preprune_ratio(512, 512, beta) == pytest.approx(max(beta, 0.0), abs=1e-15)


def test_llama_2_mlp_has_the_releases_constant():
    m, n = 13824, 5120
    assert (1 - preprune_ratio(m, n, 0.8)) / 0.2 == pytest.approx(1.45, abs=0.01)  # 2 m / (m + n) = 1.4594
    assert (1 - uv_sparsity(m, n, 32)) * 32 == pytest.approx(1.45 / 2, abs=0.005)


@pytest.mark.parametrize("m, n", SHAPES)
def test_the_same_betas_are_feasible_for_every_shape(m, n):
    for cr in RATIOS:
        beta = largest_beta(cr)
        check_feasible("w", m, n, cr, beta)
        gamma_0 = sparsity_ratios(np.ones(min(m, n)), uv_sparsity(m, n, cr), preprune_ratio(m, n, beta), 1.0)
        assert np.all(gamma_0 == 0) and len(gamma_0) == kept_rank(min(m, n), preprune_ratio(m, n, beta))
        with pytest.raises(InputError):
            check_feasible("w", m, n, cr, beta + 1e-6)


def test_an_infeasible_beta_is_explained_and_the_named_one_works():
    with pytest.raises(InputError) as error:
        check_feasible("model.layers.0.self_attn.q_proj.weight", 64, 64, 2, 0.8)
    message = str(error.value)
    assert message.startswith("model.layers.0.self_attn.q_proj.weight (64 x 64): preprune_ratio beta=0.8")
    assert "compression_ratio=2" in message and "alpha=0.7500" in message and "take beta <= 0.75 or" in message
    for cr in (*RATIOS, 1.7, 3.0, 2.5, 1.1, 5.5, 48, 100):
        with pytest.raises(InputError) as error:
            check_feasible("w", 96, 256, cr, 0.999)
        named = float(re.search(r"take beta <= ([\d.]+)", str(error.value)).group(1))
        check_feasible("w", 96, 256, cr, named)
        assert largest_beta(cr) - named < 1.1e-4


def test_kept_ranks_are_those_of_the_release():
    assert 5120 * (1 - 0.8) < 1024  # in floating point
    assert kept_rank(5120, 0.8) == 1023
    assert kept_rank(5120, 0.6) == 2048 and kept_rank(10, 0.0) == 10 and kept_rank(4, 0.8) == 0


def test_lowrank_ranks_fit_the_budget_and_are_at_least_one():
    assert lowrank_rank(4096, 4096, 32) == 64 and lowrank_rank(14336, 4096, 32) == 99 and lowrank_rank(8, 8, 1000) == 1
    for (m, n), cr in itertools.product(SHAPES, RATIOS):
        r = lowrank_rank(m, n, cr)
        assert r == 1 or r * (m + n) <= m * n / cr
        assert (r + 1) * (m + n) > m * n / cr


@pytest.mark.parametrize(
    "s, alpha, beta, C, expected",
    [
        # gamma 1/2: p = 0, 1/4, 3/8, 3/8, mean 1/4; without the last 13/32; without the last two 9/16.
        ([4, 2, 1, 1], 0.5, 0.0, 1.0, [0, 0.25]),
        # The same four columns as the upper half of eight: alpha 3/4 and beta 1/2 give gamma 1/2 again.
        ([4, 2, 1, 1, 1, 1, 0.5, 0.5], 0.75, 0.5, 1.0, [0, 0.25]),
        # Squared importance 1, 1/4, 1/16, 1/16: p = 0, 3/8, 15/32, 15/32; means 0.328, 0.461, 0.594.
        ([4, 2, 1, 1], 0.5, 0.0, 2.0, [0, 0.375]),
        # Square root: 16, 4, 1 of 16 -> 1, 1/2, 1/4; gamma 0.3: p = 0, 0.15, 0.225 mean 0.125;
        # dropped one: 1.15/3 = 0.383.
        ([16, 4, 1], 0.3, 0.0, 0.5, [0, 0.15]),
        # All equal: p = 0, and exactly half of the columns are dropped: the mean reaches gamma exactly and no further.
        ([2, 2, 2, 2], 0.5, 0.0, 1.0, [0, 0]),
        # A tie at the boundary: the last of equal columns goes first. gamma 1/4: p = 0, 1/8, 1/8, 1/8; mean 3/32; 5/16.
        ([2, 1, 1, 1], 0.25, 0.0, 1.0, [0, 0.125, 0.125]),
        # C = 0: every column as important as the first.
        ([9, 3, 1, 0.1], 0.25, 0.0, 0.0, [0, 0, 0]),
        # gamma 0: nothing to drop beyond the pre-pruning.
        ([4, 2, 1, 1], 0.5, 0.5, 1.0, [0, 0]),
        # alpha 1: nothing may stay.
        ([4, 2, 1, 1], 1.0, 0.0, 1.0, []),
        # One column is left and gamma is above 0: dropping it is the only way to reach gamma.
        ([4, 2, 1, 1], 0.8, 0.75, 1.0, []),
        # Pre-pruning leaves no column at all.
        ([4, 2, 1, 1], 0.9, 0.8, 1.0, []),
        # Zeros: base equals fine-tuned; a zero tail is dropped even where the mean is reached without it.
        ([0, 0, 0], 0.5, 0.0, 1.0, []),
        ([8, 0, 0, 0], 0.5, 0.0, 1.0, [0]),
        ([4, 4, 2, 0, 0, 0, 0, 0], 0.5, 0.0, 1.0, [0, 0, 0.25]),
    ],
)
def test_goldens_worked_by_hand(s, alpha, beta, C, expected):
    p = sparsity_ratios(np.array(s, dtype=float), alpha, beta, C)
    assert p.dtype == np.float64
    assert p == pytest.approx(expected, abs=1e-15) and len(p) == len(expected)


def test_equal_to_the_plain_loop_on_thousands_of_spectra():
    generator = np.random.default_rng(0)
    for _ in range(4000):
        N = int(generator.integers(1, 60))
        s = spectrum(generator, N)
        beta = float(generator.choice([0.0, 0.3, 0.6, 0.7, 0.8]))
        alpha = float(generator.choice([beta + (1 - beta) * generator.random(), 0.984375, 0.96875, 0.875]))
        C = float(generator.choice([0.5, 1.0, 2.0]))
        p, expected = sparsity_ratios(s, alpha, beta, C), algorithm_1(s.tolist(), alpha, beta, C)
        assert len(p) == len(expected), (s.tolist(), alpha, beta, C)
        assert np.allclose(p, expected, rtol=1e-13, atol=1e-15)  # NumPy's power may differ in the last bit


def test_monotone_in_range_and_gamma_met_from_above_within_one_column():
    generator = np.random.default_rng(1)
    for _ in range(2000):
        N = int(generator.integers(2, 400))
        s, beta, C = spectrum(generator, N), float(generator.uniform(0, 0.9)), float(generator.uniform(0.1, 3))
        alpha = beta + (1 - beta) * float(generator.random())
        gamma, K = (alpha - beta) / (1 - beta), kept_rank(N, beta)
        p = sparsity_ratios(s, alpha, beta, C)
        assert len(p) <= K and np.all((p >= 0) & (p < 1)) and np.all(np.diff(p) >= 0)
        if K == 0:
            continue
        mean = (p.sum() + K - len(p)) / K
        assert mean >= gamma - 1e-12
        with_one_more = min(len(p) + 1, K)
        one_more = (1 - (s[with_one_more - 1] / s[0]) ** C) * gamma
        if len(p) < K:  # one column more would have missed gamma
            assert (p.sum() + one_more + K - len(p) - 1) / K < gamma + 1e-12


def test_the_mean_over_all_columns_meets_alpha_for_real_shapes():
    """The matrix keeps its budget or up to two columns less: the boundary's, and the one lost to the floor in K."""
    for (m, n), cr in itertools.product([(1024, 4096), (14336, 4096), (512, 512), (64, 176)], (4.0, 8.0, 32.0)):
        N = min(m, n)
        s = np.arange(1, N + 1) ** -0.7
        p = sparsity_ratios(s, uv_sparsity(m, n, cr), preprune_ratio(m, n, 0.6), 0.5)
        kept = (1 - p).sum() * (m + n)
        assert m * n / cr - 2 * (m + n) <= kept <= m * n / cr + 1e-6


def test_scale_of_the_singular_values_does_not_matter():
    s = np.arange(1, 100) ** -0.8
    p = sparsity_ratios(s, 0.95, 0.6, 0.5)
    for factor in (2.0**-60, 2.0**40):
        assert np.array_equal(sparsity_ratios(s * factor, 0.95, 0.6, 0.5), p)


def test_uniform_allocation_gives_every_kept_column_gamma():
    s = np.array([8, 4, 2, 1, 1, 1, 0.5, 0.5])
    assert uniform_ratios(s, 0.75, 0.5).tolist() == [0.5] * 4
    assert uniform_ratios(np.array([8, 4, 0, 0]), 0.5, 0.0).tolist() == [0.5, 0.5]
    assert len(uniform_ratios(s, 1.0, 0.0)) == 0 and len(uniform_ratios(np.zeros(4), 0.5, 0.0)) == 0


@pytest.mark.parametrize(
    "s, alpha, beta, words",
    [
        ([1, np.nan], 0.5, 0.0, "finite"),
        ([np.inf, 1], 0.5, 0.0, "finite"),
        ([1, -1], 0.5, 0.0, "non-negative"),
        ([1, 2], 0.5, 0.0, "descending"),
        ([[1, 2]], 0.5, 0.0, "vector"),
        ([2, 1], 0.5, 1.0, "beta=1"),
        ([2, 1], 1.5, 0.0, "alpha=1.5"),
        ([2, 1], 0.5, -0.1, "beta=-0.1"),
        ([2, 1], 0.5, 0.6, "beta=0.6 of the columns, more than alpha=0.5000"),
        ([2, 1], float("nan"), 0.0, "alpha=nan"),
    ],
)
def test_meaningless_input_is_refused(s, alpha, beta, words):
    for function in (lambda *given: sparsity_ratios(*given, 1.0), uniform_ratios):
        with pytest.raises(ValueError, match=words):
            function(np.array(s, dtype=float), alpha, beta)
