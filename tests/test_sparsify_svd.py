"""The fast SVD against torch.linalg.svd: every shape, the leading part alone, and matrices that break naive ones."""

import pytest
import torch

from impart.svd import LEADING_SHARE, delta_svd


def spectrum_matrix(m, n, s, seed=0):
    """A matrix (m, n) with singular values s, in fp32, from fp64 factors."""
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(m, len(s), generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, len(s), generator=generator, dtype=torch.float64)).Q
    return ((U * s) @ V.T).float()


def fine_tuning_spectrum(N):
    """Power law, bulk, and the rounding noise of 16-bit weights."""
    return torch.arange(1, N + 1).double() ** -0.7 + 0.02 * torch.linspace(1, 0.2, N).double()


def residual(dW, U, s, V):
    return float(
        torch.linalg.norm(dW.double() - (U.double() * s.double()) @ V.double().T) / torch.linalg.norm(dW.double())
    )


SHAPES = [(64, 64), (200, 64), (64, 200), (128, 96), (1, 5), (5, 1), (1, 1), (33, 32)]


@pytest.mark.parametrize("m, n", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 3e4])
def test_all_triplets_equal_torch(m, n, scale):
    N = min(m, n)
    dW = spectrum_matrix(m, n, fine_tuning_spectrum(N) * scale)
    U, s, V = delta_svd(dW)
    expected = torch.linalg.svdvals(dW.double())
    assert U.shape == (m, N) and s.shape == (N,) and V.shape == (n, N)
    assert U.dtype == s.dtype == V.dtype == torch.float32
    assert U.T.is_contiguous() and V.T.is_contiguous()
    assert torch.all(s[:-1] >= s[1:]) and torch.all(s >= 0)
    assert torch.allclose(s.double(), expected, rtol=2e-4, atol=0)
    assert residual(dW, U, s, V) < 2e-6
    for factor in (U, V):
        assert torch.allclose(factor.T @ factor, torch.eye(N), atol=2e-3)


@pytest.mark.parametrize("m, n", [(96, 64), (64, 96), (80, 80)])
@pytest.mark.parametrize("share", [0.05, 0.2, LEADING_SHARE, 0.41, 0.9, 1.0])
def test_leading_triplets_are_those_of_the_whole(m, n, share):
    """Below LEADING_SHARE LAPACK's evr is taken, above it all of them: both have to give the best approximation."""
    N = min(m, n)
    rank = max(1, int(share * N))
    dW = spectrum_matrix(m, n, fine_tuning_spectrum(N))
    U, s, V = delta_svd(dW, rank)
    u, sigma, vt = torch.linalg.svd(dW.double(), full_matrices=False)
    assert U.shape == (m, rank) and s.shape == (rank,) and V.shape == (n, rank)
    assert torch.allclose(s.double(), sigma[:rank], rtol=2e-4)
    assert torch.allclose((U * s) @ V.T, ((u[:, :rank] * sigma[:rank]) @ vt[:rank]).float(), atol=2e-4)
    best = float(torch.linalg.norm(sigma[rank:]) / torch.linalg.norm(sigma))
    assert residual(dW, U, s, V) <= best * (1 + 1e-4) + 2e-6


@pytest.mark.parametrize("m, n", [(64, 192), (192, 64), (40, 40)])
def test_one_triplet_alone(m, n):
    dW = spectrum_matrix(m, n, fine_tuning_spectrum(min(m, n)))
    one, all_of_them = delta_svd(dW, 1), delta_svd(dW)
    for alone, whole in zip(one, all_of_them, strict=True):
        assert alone.shape[-1] == 1 and torch.allclose(alone.abs(), whole[..., :1].abs(), rtol=1e-3, atol=1e-4)


def test_the_two_eigensolvers_agree_where_they_meet():
    dW = spectrum_matrix(150, 100, fine_tuning_spectrum(100))
    few, more = int(LEADING_SHARE * 100), int(LEADING_SHARE * 100) + 1
    a, b = delta_svd(dW, few), delta_svd(dW, more)
    assert torch.allclose(a[1], b[1][:few], rtol=1e-5)
    assert torch.allclose((a[0] * a[1]) @ a[2].T, (b[0][:, :few] * b[1][:few]) @ b[2][:, :few].T, atol=1e-5)


def test_a_rank_above_all_means_all():
    dW = spectrum_matrix(20, 30, fine_tuning_spectrum(20))
    assert all(torch.equal(a, b) for a, b in zip(delta_svd(dW, 500), delta_svd(dW), strict=True))


@pytest.mark.parametrize("m, n", [(60, 40), (40, 60), (50, 50)])
@pytest.mark.parametrize("rank", [None, 7, 30])
def test_rank_deficient_matrices(m, n, rank):
    dW = spectrum_matrix(m, n, torch.tensor([3.0, 2.0, 2.0, 0.5, 0.01], dtype=torch.float64))
    U, s, V = delta_svd(dW, rank)
    assert torch.allclose(s[:5], torch.tensor([3.0, 2.0, 2.0, 0.5, 0.01]), rtol=1e-3)
    assert torch.all(s[5:] < 1e-4) and torch.all(torch.isfinite(U)) and torch.all(torch.isfinite(V))
    # All vectors together lose nothing; the leading ones alone mix a part of 1e-5 into the null space of an fp32 Gram.
    assert residual(dW, U, s, V) < (2e-6 if rank is None else 2e-5)


def test_columns_lost_in_rounding_are_zero_on_the_long_side():
    dW = torch.zeros(6, 4)
    dW[0, 0], dW[1, 1] = 2.0, 1.0
    U, s, V = delta_svd(dW)
    assert s.tolist() == [2.0, 1.0, 0.0, 0.0]
    assert torch.all(U[:, 2:] == 0) and torch.allclose(V.T @ V, torch.eye(4))
    U, s, V = delta_svd(dW.T)
    assert torch.all(V[:, 2:] == 0) and torch.allclose(U.T @ U, torch.eye(4))


@pytest.mark.parametrize("m, n, rank", [(4, 6, None), (6, 4, None), (5, 5, 2)])
def test_the_zero_matrix_has_zero_values_and_no_nan(m, n, rank):
    U, s, V = delta_svd(torch.zeros(m, n), rank)
    r = rank or min(m, n)
    assert s.tolist() == [0.0] * r and U.shape == (m, r) and V.shape == (n, r)
    assert torch.all(torch.isfinite(U)) and torch.all(torch.isfinite(V))


def test_the_smallest_deltas_of_16_bit_weights_do_not_vanish_in_the_gram_matrix():
    """Squares of 1e-24 are below fp32's smallest number."""
    dW = spectrum_matrix(48, 32, fine_tuning_spectrum(32) * 1e-24)
    U, s, V = delta_svd(dW)
    assert torch.allclose(s.double(), torch.linalg.svdvals(dW.double()), rtol=2e-4, atol=0)
    assert residual(dW, U, s, V) < 2e-6


def test_equal_singular_values_span_the_right_space():
    dW = spectrum_matrix(40, 30, torch.tensor([1.0] * 10 + [0.1] * 20, dtype=torch.float64))
    U, s, V = delta_svd(dW, 10)
    assert torch.allclose(s, torch.ones(10), rtol=1e-5)
    assert residual(dW, U, s, V) == pytest.approx(float(torch.linalg.svdvals(dW)[10:].norm() / dW.norm()), rel=1e-4)


def test_a_flat_tail_far_below_the_first_value_is_exact_where_square_roots_of_eigenvalues_are_not():
    s_true = torch.cat([torch.ones(1), torch.full((255,), 1e-4)]).double()
    dW = spectrum_matrix(512, 256, s_true)
    naive = torch.linalg.eigvalsh(dW.T @ dW).clamp(min=0).sqrt().flip(0).double()
    error, naive_error = ((values / s_true - 1).abs().max() for values in (delta_svd(dW)[1].double(), naive))
    assert error < 1e-4 and naive_error > 0.5


def test_the_input_is_left_as_it_was():
    for dtype in (torch.float32, torch.bfloat16):
        dW = spectrum_matrix(20, 30, fine_tuning_spectrum(20)).to(dtype)
        before = dW.clone()
        delta_svd(dW, 3)
        delta_svd(dW)
        assert torch.equal(dW, before)


def test_the_same_bits_every_time():
    dW = spectrum_matrix(70, 50, fine_tuning_spectrum(50))
    for rank in (None, 10):
        assert all(torch.equal(a, b) for a, b in zip(delta_svd(dW, rank), delta_svd(dW, rank), strict=True))


@pytest.mark.cuda
def test_a_gpu_gives_the_same_triplets():
    dW = spectrum_matrix(200, 120, fine_tuning_spectrum(120))
    U, s, V = (factor.cpu() for factor in delta_svd(dW.cuda(), 40))
    expected = delta_svd(dW, 40)
    assert torch.allclose(s, expected[1], rtol=1e-4)
    assert torch.allclose((U * s) @ V.T, (expected[0] * expected[1]) @ expected[2].T, atol=1e-4)


@pytest.mark.parametrize("outliers", [1, 3])
@pytest.mark.parametrize("rank", [20, 64, None])
def test_a_few_huge_entries_do_not_spoil_the_other_triplets(outliers, rank):
    """Truncated at any rank, the error is the optimum of fp64, though the first values are 500 times the next ones."""
    n, generator = 256, torch.Generator().manual_seed(3)
    U, V = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    dW = (U * (0.02 * torch.arange(1, n + 1, dtype=torch.float64) ** -0.8)) @ V.T
    for index in range(outliers):
        dW[7 * index + 3, 5 * index + 2] += 10.0
    found = delta_svd(dW.float(), rank)
    values = torch.linalg.svdvals(dW.float().double())
    best = values[rank or n :].norm() / values.norm()
    assert residual(dW, *found) <= 1.01 * best + 2e-7
    assert torch.allclose(found[1].double(), values[: len(found[1])], rtol=2e-3, atol=1e-7)


def test_an_exact_delta_of_low_rank_keeps_its_rank():
    generator = torch.Generator().manual_seed(0)
    dW = torch.randn(200, 4, generator=generator) @ torch.randn(4, 150, generator=generator)
    U, s, V = delta_svd(dW)
    assert residual(dW, U, s, V) < 1e-5 and int((s > 1e-3 * s[0]).sum()) == 4
