"""What stored tensors mean: every encoding decodes to what its method promises, and holds no more than it says."""

import numpy as np
import pytest
import torch

from impart.encodings import empty, sparse_entries, sparse_svd, svd
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.masks import LEVELS, MASKS, bernoulli_mask, keep_thresholds

NAME = "model.layers.0.self_attn.q_proj.weight"


def decoded(encoded, name=NAME):
    return encoded.dense(name)


def triplets(m, n, r, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(m, r, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(n, r, generator=generator)).Q
    return U, scale * torch.arange(1, r + 1).float() ** -0.8, V


def sparse(U, s, V, p, *, seed=0, mask="bernoulli", rescale=True, name=NAME):
    return sparse_svd.write(U, s, V, np.asarray(p), seed=seed, name=name, mask=mask, rescale=rescale)


def test_an_empty_delta_stores_nothing_and_is_zero():
    encoded = empty.write((3, 5))
    assert encoded.tensors == {} and encoded.facts["kept"] == [0, 0] and encoded.facts["rank"] == 0
    assert torch.equal(decoded(encoded), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="no factors"):
        encoded.factors(NAME)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_svd_factors_decode_to_their_product(dtype, tolerance):
    U, s, V = triplets(12, 9, 6, scale=1e-5)
    encoded = svd.write(U, s, V, dtype)
    assert (
        encoded.tensors["U"].dtype == encoded.tensors["V"].dtype == dtype
        and encoded.tensors["s"].dtype == torch.float32
    )
    assert encoded.facts == {"rank": 6, "kept": [72, 54], "bits": 16 if dtype != torch.float32 else 32}
    assert torch.allclose(decoded(encoded), (U * s) @ V.T, atol=tolerance * 1e-5)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("rescale", [True, False])
def test_sparse_factors_decode_to_masked_rescaled_factors(kind, rescale):
    U, s, V = triplets(30, 20, 5)
    p = np.array([0.0, 0.25, 0.5, 0.8, 0.999])
    encoded = sparse(U, s, V, p, seed=3, mask=kind, rescale=rescale)
    t = keep_thresholds(p)
    xi, eta = (torch.from_numpy(MASKS[kind](3, NAME, letter, t, rows)).T for letter, rows in (("U", 30), ("V", 20)))
    scale = torch.from_numpy(LEVELS / t).float() if rescale else torch.ones(5)
    found = encoded.factors(NAME)
    expected = (U.half().float() * xi * scale, (s / s[0]).half().float() * s[0], V.half().float() * eta * scale)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(decoded(encoded), (expected[0] * expected[1]) @ expected[2].T)


def test_sparse_factors_hold_the_kept_values_and_four_bytes_per_column():
    U, s, V = triplets(30, 20, 5)
    encoded = sparse(U, s, V, np.linspace(0, 0.9, 5))
    assert len(encoded.tensors["values"]) == sum(encoded.facts["kept"])
    assert sum(tensor.nbytes for tensor in encoded.tensors.values()) == 2 * sum(encoded.facts["kept"]) + 4 * 5
    assert encoded.facts["kept"][0] >= 30 and encoded.facts["kept"][1] >= 20  # the first column is whole


def test_sparse_factors_survive_scales_that_fp16_cannot_hold():
    U, s, V = triplets(16, 16, 4)
    reference = decoded(sparse(U, s, V, [0, 0.1, 0.2, 0.3]))
    for scale in (2.0**-40, 2.0**20):  # fp16 ends at 6e-8 and 65504
        assert torch.allclose(
            decoded(sparse(U, s * scale, V, [0, 0.1, 0.2, 0.3])), reference * scale, rtol=1e-6, atol=0
        )


def test_p_of_one_keeps_something_and_is_no_division_by_zero():
    U, s, V = triplets(2000, 1000, 2)
    encoded = sparse(U, s, V, [0.0, 1.0])
    assert torch.all(torch.isfinite(decoded(encoded)))
    assert encoded.facts["kept"][0] < 2010


def test_matrices_of_one_column_or_row():
    for m, n in ((1, 8), (8, 1), (1, 1)):
        U, s, V = torch.full((m, 1), m**-0.5), torch.tensor([2.0]), torch.full((n, 1), n**-0.5)
        assert decoded(sparse(U, s, V, [0.0])).shape == (m, n)
        assert torch.allclose(decoded(sparse(U, s, V, [0.0])), torch.full((m, n), 2.0 * (m * n) ** -0.5), rtol=1e-3)


def means_and_errors(draw, seeds):
    """Mean of `draw(seed)` over the seeds and its standard error, entry by entry, in fp64."""
    total = squares = 0.0
    for seed in range(seeds):
        x = draw(seed).double()
        total, squares = total + x, squares + x * x
    mean = total / seeds
    return mean, ((squares / seeds - mean * mean).clamp(min=0) / seeds).sqrt()


def assert_unbiased(draw, expected, seeds=1500):
    """Every entry within 5.5 standard errors, and on the whole as far away as chance has it."""
    mean, error = means_and_errors(draw, seeds)
    exact = error < 1e-12
    assert torch.allclose(mean[exact], expected[exact].double(), atol=1e-6)
    z = (mean - expected.double())[~exact] / error[~exact]
    assert z.abs().max() < 5.5
    assert z.square().mean() < 2.0


@pytest.mark.parametrize("kind", MASKS)
def test_the_mean_over_seeds_is_the_truncated_product(kind):
    """E[dW^] = U diag(s) V^T of the columns that remain, Eq. 6: U and V are masked independently."""
    U, s, V = triplets(14, 11, 5)
    U, V = U.half().float(), V.half().float()  # what is stored
    stored_s = (s / s[0]).half().float() * s[0]
    p = np.array([0.0, 0.25, 0.5, 0.625, 0.75])
    if kind == "exact_count":  # int(m p) of m entries: unbiased where m p is whole
        U, V = torch.cat([U, U[:2]]), torch.cat([V, V[:5]])
    assert_unbiased(lambda seed: decoded(sparse(U, s, V, p, seed=seed, mask=kind)), (U * stored_s) @ V.T)


def test_without_rescaling_the_mean_shrinks_by_both_keep_probabilities():
    U, s, V = triplets(14, 11, 4)
    U, V = U.half().float(), V.half().float()
    stored_s = (s / s[0]).half().float() * s[0]
    p = np.array([0.0, 0.25, 0.5, 0.75])
    expected = (U * (stored_s * torch.from_numpy((1 - p) ** 2).float())) @ V.T
    assert_unbiased(lambda seed: decoded(sparse(U, s, V, p, seed=seed, rescale=False)), expected)


def test_masks_of_different_matrices_and_factors_differ():
    U, s, _ = triplets(40, 40, 4)
    p = [0.5] * 4
    assert not torch.equal(decoded(sparse(U, s, U, p)), decoded(sparse(U, s, U, p, name="b"), "b"))
    dense_U, _, dense_V = sparse(U, s, U, p).factors(NAME)
    assert not torch.equal(dense_U, dense_V)


def test_entries_decode_to_masked_rescaled_entries():
    dW = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 1e-3
    encoded = sparse_entries.write(dW, 0.25, seed=5, name=NAME)
    mask = torch.from_numpy(bernoulli_mask(5, NAME, "dW", np.full(40, 16384), 30))
    assert encoded.facts["kept"] == [int(mask.sum())] == [len(encoded.tensors["values"])]
    assert list(encoded.tensors) == ["values"] and encoded.tensors["values"].dtype == torch.float16
    assert torch.allclose(decoded(encoded), dW * mask * 4, rtol=2**-10, atol=0)
    unscaled = sparse_entries.write(dW, 0.25, seed=5, name=NAME, rescale=False)
    assert torch.equal(decoded(unscaled) * 4, decoded(encoded))


def test_entries_are_unbiased_with_the_variance_of_bernoulli():
    dW = torch.randn(12, 10, generator=torch.Generator().manual_seed(1)).half().float()
    assert_unbiased(lambda seed: decoded(sparse_entries.write(dW, 0.25, seed=seed, name=NAME)), dW)
    _, error = means_and_errors(lambda seed: decoded(sparse_entries.write(dW, 0.25, seed=seed, name=NAME)), 1500)
    assert float((error**2 * 1500).sum() / (3 * dW.double() ** 2).sum()) == pytest.approx(1.0, abs=0.05)  # 1 / q - 1


def test_keep_ratio_one_keeps_all_entries():
    dW = torch.randn(7, 9)
    assert torch.allclose(decoded(sparse_entries.write(dW, 1.0, seed=0, name=NAME)), dW, rtol=2**-10, atol=1e-7)


def test_entries_do_not_depend_on_how_rows_are_blocked(monkeypatch):
    dW = torch.randn(50, 33)
    whole = sparse_entries.write(dW, 0.3, seed=2, name=NAME)
    small = sparse_entries._row_blocks
    monkeypatch.setattr(sparse_entries, "_row_blocks", lambda m, n: small(m, n, entries=4 * n))
    pieces = sparse_entries.write(dW, 0.3, seed=2, name=NAME)
    assert torch.equal(whole.tensors["values"], pieces.tensors["values"])
    assert torch.equal(decoded(whole), decoded(pieces))


def test_entries_beyond_the_range_of_fp16_are_scaled_into_it():
    generator = torch.Generator().manual_seed(3)
    dW = torch.randn(20, 20, generator=generator)
    for scale in (1e-12, 1e-7, 1e6):
        found = decoded(sparse_entries.write(dW * scale, 0.5, seed=0, name=NAME))
        mask = found != 0
        assert torch.allclose(found[mask], 2 * scale * dW[mask], rtol=2**-10, atol=0)
        assert 120 < int(mask.sum()) < 280


def test_entries_of_which_none_is_kept():
    encoded = sparse_entries.write(torch.ones(2, 2), 1 / LEVELS, seed=1, name=NAME)
    assert encoded.facts["kept"] == [0] and torch.equal(decoded(encoded), torch.zeros(2, 2))


@pytest.mark.parametrize("encoding", ["of the future", "of_the_future", "codes", "encoded", "..packing", "os"])
def test_an_unknown_encoding_is_one_line(encoding):
    with pytest.raises(InputError, match="not known here"):
        Encoded(encoding, (2, 2)).dense(NAME)
