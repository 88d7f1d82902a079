"""UltraDelta, PrinMix and D-QReLO against their formulas, line by line, and their budgets in bytes."""

import itertools

import numpy as np
import pytest
import torch

from impart.encodings import head_and_tail
from impart.encodings.headers import header_bytes
from impart.errors import InputError
from impart.masks import LEVELS, bernoulli_mask
from impart.method import DenseMatrix
from quantize.methods.dqrelo import ENCODINGS, DQReLO
from quantize.methods.prinmix import PrinMix, allocated_bits, rank_one_errors, refitted, triplet_bytes
from quantize.methods.ultradelta import UltraDelta, keep_ratios
from quantize.vectors import on_grid

NAMES = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(6)]


def random(m, n, seed=0, scale=1e-3):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed)) * scale


def spectrum(m, n, power=1.0):
    """dW (m, n) whose singular values fall like k^-power."""
    U, V = (torch.linalg.qr(random(rows, min(m, n), seed=rows, scale=1)).Q for rows in (m, n))
    return (U * 0.01 * torch.arange(1, min(m, n) + 1).float() ** -power) @ V.T


def ultradelta_reference(dW, bits, p_own, p_mean, gamma, seed, name):
    """Wang et al., entry by entry: min-max codes, a seeded share dropped of every code, one rescaling for all."""
    low, high, top = float(dW.min()), float(dW.max()), 2**bits - 1
    dropped = ~torch.from_numpy(
        bernoulli_mask(seed, name, "dW", np.full(len(dW), round((1 - p_own) * LEVELS)), dW.shape[1])
    )
    out = torch.zeros_like(dW)
    for i, j in itertools.product(*map(range, dW.shape)):
        code = round((float(dW[i, j]) - low) / (high - low) * top)
        if not dropped[i, j]:
            out[i, j] = gamma / (1 - p_mean) * (low + code / top * (high - low))
    return out


@pytest.mark.parametrize("bits, gamma", [(2, 1.0), (4, 0.7), (8, 1.0)])
def test_ultradelta_is_its_formula(bits, gamma):
    deltas = [DenseMatrix(name, random(24, 32, seed, 1e-3 * (1 + seed))) for seed, name in enumerate(NAMES)]
    method = UltraDelta(compression_ratio_qt=4, bits=bits, gamma=gamma, step=0.3).fitted(deltas)
    for one in deltas:
        expected = ultradelta_reference(one.dW, bits, 1 - method.keeps[one.name], 1 - method.keep, gamma, 5, one.name)
        encoded = method.encode(one, 5)
        assert torch.allclose(encoded.dense(one.name), expected, rtol=1e-5, atol=1e-7)


def test_ultradeltas_thirds_drop_less_where_the_delta_varies_more_and_p_in_the_mean():
    shapes = dict.fromkeys(NAMES, (8, 8))
    found = keep_ratios(dict(zip(NAMES, (3, 1, 2, 6, 5, 4), strict=True)), shapes, keep=0.1, step=0.2)
    assert [round(found[name], 6) for name in NAMES] == [0.1, 0.08, 0.08, 0.12, 0.12, 0.1]
    assert np.mean(list(found.values())) == pytest.approx(0.1)


def test_ultradelta_drops_the_same_share_of_every_code():
    dW = random(512, 512)
    method = UltraDelta(compression_ratio_qt=8, bits=2, step=0.0).fitted([DenseMatrix(NAMES[0], dW)])
    kept = method.encode(DenseMatrix(NAMES[0], dW), 0).dense(NAMES[0]) != 0
    codes = ((dW - dW.min()) / (dW.max() - dW.min()) * 3).round()
    for code in range(4):
        group = kept[codes == code].float()
        assert abs(float(group.mean()) - method.keep) < 5 * (method.keep / len(group)) ** 0.5


@pytest.mark.parametrize("cr", [16, 64])
def test_ultradelta_and_prinmix_take_the_bytes_that_they_are_given(cr):
    for seed, (m, n) in enumerate([(1024, 1024), (512, 1536)]):
        matrix = DenseMatrix(NAMES[seed], spectrum(m, n))
        for method in (UltraDelta(compression_ratio_qt=cr), PrinMix(compression_ratio_qt=cr)):
            encoded = method.fitted([matrix]).encode(matrix, 0)
            without = ("keep",) if method.name == "prinmix" else ()
            stored = encoded.nbytes + header_bytes(matrix.name, encoded.encoding, encoded.nbytes, without)
            assert stored == pytest.approx(2 * m * n / cr, rel=0.01 if method.name == "ultradelta" else 0.03)


def test_a_budget_that_holds_nothing_is_refused():
    with pytest.raises(InputError, match="leaves no byte for entries of 8 bits"):
        UltraDelta(compression_ratio_qt=64, bits=8).mean_keep({NAMES[0]: (16, 16)})
    with pytest.raises(
        InputError, match=r"\(64 x 192\): compression_ratio_qt=128 leaves 0 bytes, less than one triplet"
    ):
        PrinMix(compression_ratio_qt=128).check(NAMES[0], 64, 192)


def loss_of(bits, s, errors):
    return sum(v**2 * (errors[b][k] if b else 1.0) for k, (v, b) in enumerate(zip(s, bits, strict=True)))


def test_dqrelo_is_its_formula():
    matrix = DenseMatrix(NAMES[0], spectrum(96, 128))
    method = DQReLO(compression_ratio_qt=5)
    encoded, r = method.encode(matrix, 0), method.rank(NAMES[0], 96, 128)
    alpha = sum(abs(float(w)) for w in matrix.dW.flatten()) / (96 * 128)
    signs = torch.where(matrix.dW >= 0, alpha, -alpha)
    U, s, Vt = torch.linalg.svd(matrix.dW - signs)
    expected = signs + (U[:, :r] * s[:r]) @ Vt[:r]
    assert r > 1 and torch.allclose(encoded.dense(NAMES[0]), expected, atol=2e-3 * float(s[0]))
    stored = encoded.nbytes + head_and_tail.expected_header_bytes(NAMES[0], ENCODINGS, encoded.nbytes)
    assert stored == pytest.approx(2 * 96 * 128 / 5, rel=0.1) and stored <= 2 * 96 * 128 / 5
    with pytest.raises(
        InputError, match="compression_ratio_qt=16 leaves no byte for a triplet beside one bit per entry"
    ):
        DQReLO(compression_ratio_qt=16).check(NAMES[0], 4096, 4096)


def best_by_trying(s, errors, costs, budget):
    """min sum s_k^2 e_b(k) over all choices of bits within the budget."""
    choices = itertools.product((0, *costs), repeat=len(s))
    return min(loss_of(bits, s, errors) for bits in choices if sum(costs[b] for b in bits if b) <= budget)


@pytest.mark.parametrize("budget", [60, 113, 200, 400])
def test_prinmix_allocates_bits_as_the_integer_program_does_but_for_one_step(budget):
    rng, costs = np.random.default_rng(budget), {2: 20.0, 3: 30.0, 4: 40.0, 8: 80.0}
    s = np.sort(rng.uniform(0.1, 1, 5))[::-1]
    errors = {b: 0.9 * 4.0 ** -(b - 1) * rng.uniform(0.8, 1.2, 5) for b in costs}
    bits = allocated_bits(s, errors, costs, budget)
    best, found = best_by_trying(s, errors, costs, budget), loss_of(bits, s, errors)
    assert sum(costs[b] for b in bits if b) <= budget
    assert found <= best + max(s**2)
    if budget == 400:
        assert found == pytest.approx(best) and set(bits) == {8}


def test_prinmix_errors_are_those_of_the_rank_one_products():
    u, v = random(5, 12, 1, 1.0), random(5, 9, 2, 1.0)
    uq, vq = on_grid(u, 3).values(), on_grid(v, 3).values()
    expected = [
        float(torch.linalg.norm(torch.outer(a, b) - torch.outer(c, d)) ** 2 / torch.linalg.norm(torch.outer(a, b)) ** 2)
        for a, b, c, d in zip(u, v, uq, vq, strict=True)
    ]
    assert np.allclose(rank_one_errors((u, v), (uq, vq)), expected, rtol=1e-4)


def test_prinmix_fits_u_again_by_weighted_least_squares():
    dW, A, X = random(12, 10, 1, 1.0), random(4, 10, 2, 1.0), random(10, 40, 3, 1.0)
    H = X @ X.T
    expected = torch.linalg.lstsq((A @ X).T.double(), (dW @ X).T.double()).solution.T  # min norm(dW X - U A X)
    assert torch.allclose(refitted(dW, A, H), expected.float(), rtol=1e-3, atol=1e-4)
    plain = torch.linalg.lstsq(A.T.double(), dW.T.double()).solution.T
    assert torch.allclose(refitted(dW, A), plain.float(), rtol=1e-3, atol=1e-4)


def test_prinmix_is_its_formula():
    dW, cr = spectrum(96, 128), 16
    method, matrix = PrinMix(compression_ratio_qt=cr), DenseMatrix(NAMES[0], dW)
    encoded = method.encode(matrix, 0)
    bits = [b for b, count in encoded.facts["plan"] for _ in range(count)]
    U, s, V = matrix.triplets(len(bits))
    Vq = on_grid(V.T, torch.tensor(bits)).values()
    A = s[:, None] * Vq
    Uq = on_grid(refitted(dW, A).T, torch.tensor(bits)).values().T
    assert torch.allclose(encoded.dense(NAMES[0]), Uq @ A, rtol=1e-2, atol=2e-5)
    assert sorted(bits, reverse=True) == bits and sum(triplet_bytes(96, 128, b) for b in bits) <= method.budget(
        NAMES[0], 96, 128
    )
    error = torch.linalg.norm(encoded.dense(NAMES[0]) - dW)
    plain = PrinMix(compression_ratio_qt=cr, refit=False).encode(matrix, 0)
    assert error < torch.linalg.norm(plain.dense(NAMES[0]) - dW)
