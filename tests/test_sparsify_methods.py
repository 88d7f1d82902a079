"""ImPart, its ablations, DARE and LowRank on one matrix: budgets met, baselines as defined, ablations as named."""

import numpy as np
import pytest
import torch
from matrices import dare, darex, impart, impart_rank, lowrank

from impart.errors import InputError
from impart.masks import LEVELS, bernoulli_mask
from impart.svd import delta_svd
from sparsify.allocation import lowrank_rank, preprune_ratio, sparsity_ratios, uv_sparsity

NAME = "model.layers.1.mlp.down_proj.weight"


def decoded(encoded):
    return encoded.dense(NAME)


def factored(m, n, power=0.8, seed=0):
    """U, s, V of all N columns, without the cost of an SVD: orthonormal columns for small ones, random for large."""
    generator = torch.Generator().manual_seed(seed)
    N = min(m, n)
    U, V = (torch.randn(rows, N, generator=generator) * rows**-0.5 for rows in (m, n))
    return U, 0.01 * torch.arange(1, N + 1).float() ** -power, V


def p_of(encoded):
    return 1 - (encoded.tensors["keep"].numpy().astype(np.int64) + 1) / LEVELS


def ours(m, n, cr, beta, C=0.5, seed=0, **ablation):
    return impart(*factored(m, n), name=NAME, cr=cr, beta=beta, C=C, seed=seed, **ablation)


@pytest.mark.parametrize("m, n", [(256, 256), (192, 512), (512, 192)])
@pytest.mark.parametrize("cr, beta", [(4, 0.6), (8, 0.8), (16, 0.7), (32, 0.8)])
def test_impart_keeps_its_budget_of_values(m, n, cr, beta):
    """Expected values at most the budget, less than two columns below it; drawn values within five deviations."""
    encoded = ours(m, n, cr, beta)
    p, kept = p_of(encoded), sum(encoded.facts["kept"])
    expected = (1 - p).sum() * (m + n)
    assert m * n / cr - 2 * (m + n) <= expected <= m * n / cr + (m + n) * len(p) / LEVELS
    assert abs(kept - expected) <= 5 * np.sqrt((p * (1 - p)).sum() * (m + n)) + 1


def test_impart_is_algorithm_1_on_the_matrix_with_its_own_alpha_and_b():
    m, n, cr, beta, C = 96, 256, 8, 0.6, 0.5
    U, s, V = factored(m, n)
    p = sparsity_ratios(s.double().numpy(), uv_sparsity(m, n, cr), preprune_ratio(m, n, beta), C)
    encoded = ours(m, n, cr, beta, C)
    assert encoded.facts["rank"] == len(p) and np.allclose(p_of(encoded), p, atol=1 / LEVELS)
    assert encoded.facts["s_1"] == float(s[0])


def test_the_leading_k_triplets_are_enough():
    """What the fused way relies on: columns beyond K never matter."""
    for m, n, cr, beta in ((128, 128, 8, 0.6), (96, 256, 16, 0.8)):
        U, s, V = factored(m, n)
        K = impart_rank(m, n, beta)
        whole = impart(U, s, V, name=NAME, cr=cr, beta=beta, C=1.0, seed=0)
        leading = impart(U[:, :K], s[:K], V[:, :K], name=NAME, cr=cr, beta=beta, C=1.0, seed=0)
        assert K < min(m, n) and whole.facts == leading.facts
        assert all(torch.equal(whole.tensors[key], leading.tensors[key]) for key in whole.tensors)


def test_impart_approaches_the_delta_as_the_ratio_falls():
    generator = torch.Generator().manual_seed(5)
    dW = torch.randn(96, 5, generator=generator) @ torch.randn(5, 64, generator=generator)
    dW += 0.05 * torch.randn(96, 64, generator=generator)
    triplets = delta_svd(dW)
    errors = [
        float((decoded(impart(*triplets, name=NAME, cr=cr, beta=0.3, C=1.0, seed=0)) - dW).norm() / dW.norm())
        for cr in (16, 4, 1)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.4


def test_ablation_no_preprune_takes_more_columns():
    full, without = ours(256, 256, 16, 0.8), ours(256, 256, 16, 0.0)
    assert without.facts["rank"] > full.facts["rank"]
    assert impart_rank(256, 256, 0.0) == 256


def test_ablation_uniform_gives_every_column_gamma():
    m = n = 256
    cr, beta = 16, 0.8
    encoded = ours(m, n, cr, beta, allocation="uniform")
    gamma = (uv_sparsity(m, n, cr) - beta) / (1 - beta)
    assert encoded.facts["rank"] == impart_rank(m, n, beta) == 51
    assert np.allclose(p_of(encoded), gamma, atol=1 / LEVELS)
    assert sum(encoded.facts["kept"]) == pytest.approx(m * n / cr, rel=0.06)


def test_ablation_no_rescale_leaves_the_kept_values_as_they_are():
    plain, rescaled = ours(64, 64, 4, 0.6, rescale=False), ours(64, 64, 4, 0.6)
    assert torch.equal(plain.tensors["values"], rescaled.tensors["values"])
    U, _, _ = plain.factors(NAME)
    U_rescaled, _, _ = rescaled.factors(NAME)
    factor = torch.from_numpy(LEVELS / (rescaled.tensors["keep"].numpy().astype(np.int64) + 1)).float()
    assert torch.allclose(U * factor, U_rescaled) and float(factor.max()) > 1.5


def test_exact_counts_and_bernoulli_share_the_allocation_and_differ_in_the_draw():
    a, b = ours(128, 128, 8, 0.6), ours(128, 128, 8, 0.6, mask="exact_count")
    assert torch.equal(a.tensors["keep"], b.tensors["keep"])
    levels = b.tensors["keep"].numpy().astype(np.int64) + 1
    assert b.facts["kept"] == [int((128 - 128 * (LEVELS - levels) // LEVELS).sum())] * 2
    assert not torch.equal(decoded(a), decoded(b))


def test_seeds_and_names_change_the_values_and_nothing_else():
    a, b, again = ours(64, 64, 4, 0.6, seed=0), ours(64, 64, 4, 0.6, seed=1), ours(64, 64, 4, 0.6, seed=0)
    assert torch.equal(a.tensors["keep"], b.tensors["keep"]) and not torch.equal(decoded(a), decoded(b))
    assert a.facts == again.facts and torch.equal(a.tensors["values"], again.tensors["values"])


@pytest.mark.parametrize("m, n, cr", [(64, 64, 4), (96, 256, 8), (256, 96, 32), (8, 8, 64)])
def test_lowrank_is_the_best_approximation_of_its_rank(m, n, cr):
    generator = torch.Generator().manual_seed(1)
    dW = torch.randn(m, n, generator=generator) * 1e-3
    r = lowrank_rank(m, n, cr)
    encoded = lowrank(*delta_svd(dW), cr=cr)
    u, s, vt = torch.linalg.svd(dW, full_matrices=False)
    assert encoded.facts["rank"] == r and encoded.facts["kept"] == [m * r, n * r] and encoded.facts["bits"] == 16
    assert torch.allclose(decoded(encoded), (u[:, :r] * s[:r]) @ vt[:r], atol=1e-5)
    assert r == 1 or sum(encoded.facts["kept"]) <= m * n / cr


def test_lowrank_of_a_matrix_of_lower_rank_stores_no_zero_triplets():
    dW = torch.outer(torch.randn(64), torch.randn(64))
    U, s, V = delta_svd(dW)
    s[1:] = 0
    assert lowrank(U, s, V, cr=2).facts["rank"] == 1


def test_dare_keeps_one_in_cr_entries_and_multiplies_them_by_cr():
    dW = torch.randn(200, 300, generator=torch.Generator().manual_seed(2)) * 1e-4
    for cr in (2, 8, 30):
        encoded = dare(dW, name=NAME, cr=cr, seed=0)
        found = decoded(encoded)
        kept = found != 0
        assert abs(int(kept.sum()) - dW.numel() / cr) < 5 * np.sqrt(dW.numel() / cr)
        assert torch.allclose(found[kept], dW[kept] * cr, rtol=2e-3)
    assert torch.allclose(decoded(dare(dW, name=NAME, cr=1, seed=0)), dW, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    "method",
    [
        lambda U, s, V: impart(U, s, V, name=NAME, cr=4, beta=0.5, C=1.0, seed=0),
        lambda U, s, V: impart(U, s, V, name=NAME, cr=4, beta=0.5, C=1.0, seed=0, allocation="uniform"),
        lambda U, s, V: lowrank(U, s, V, cr=4),
        lambda U, s, V: dare((U * s) @ V.T, name=NAME, cr=4, seed=0),
    ],
)
def test_a_zero_delta_is_stored_as_nothing(method):
    encoded = method(*delta_svd(torch.zeros(12, 20)))
    assert encoded.encoding == "empty" and encoded.tensors == {} and encoded.shape == (12, 20)


@pytest.mark.parametrize("m, n", [(1, 6), (6, 1), (2, 2)])
def test_the_smallest_matrices_go_through_every_method(m, n):
    dW = torch.arange(1.0, m * n + 1).reshape(m, n)
    for encoded in (
        impart(*delta_svd(dW), name=NAME, cr=2, beta=0.0, C=1.0, seed=0),
        lowrank(*delta_svd(dW), cr=2),
        dare(dW, name=NAME, cr=2, seed=0),
    ):
        assert decoded(encoded).shape == (m, n) and torch.all(torch.isfinite(decoded(encoded)))


@pytest.mark.parametrize("m, n", [(1024, 1024), (1024, 2816), (2816, 1024)])
@pytest.mark.parametrize("beta, C", [(0.6, 1.0), (0.8, 0.5)])
def test_at_32_the_stored_bytes_are_within_three_percent_of_nominal(m, n, beta, C):
    nominal = 2 * m * n / 32
    for encoded in (
        ours(m, n, 32, beta, C),
        ours(m, n, 32, beta, C, mask="exact_count"),
        lowrank(*factored(m, n), cr=32),
        dare(torch.randn(m, n), name=NAME, cr=32, seed=0),
    ):
        stored = sum(tensor.nbytes for tensor in encoded.tensors.values())
        assert stored == pytest.approx(nominal, rel=0.03)


def test_darex_is_the_sampled_delta_over_q_and_dare_where_q_is_the_share_kept():
    dW, cr = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * 1e-3, 8
    encoded = darex(dW, name=NAME, cr=cr, seed=3, q=0.3)
    mask = torch.from_numpy(bernoulli_mask(3, NAME, "dW", np.full(64, LEVELS // cr), 96))
    assert torch.allclose(decoded(encoded), mask * dW / 0.3, rtol=1e-3, atol=1e-7)
    plain, same = darex(dW, name=NAME, cr=cr, seed=3, q=None), dare(dW, name=NAME, cr=cr, seed=3)
    assert torch.equal(decoded(plain), decoded(same)) and plain.facts == same.facts
    assert torch.allclose(decoded(darex(dW, name=NAME, cr=cr, seed=3, q=1 / cr)), decoded(same), rtol=1e-3, atol=1e-7)


def test_darex_refuses_a_q_below_the_share_kept():
    with pytest.raises(InputError, match="q=0.1 is below 1 / compression_ratio = 0.125"):
        darex(torch.ones(4, 4), name=NAME, cr=8, seed=0, q=0.1)
