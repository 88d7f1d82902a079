"""ImPart without beta and C: the shares are those of the least expected error, and the budget is met."""

import numpy as np
import pytest
import torch

from impart.method import DenseMatrix
from impart.svd import delta_svd
from sparsify.methods.impart_auto import ImPartAuto, capped_shares, least_error_shares
from sparsify.shares import MASKED_KAPPA

NAME = "model.layers.1.mlp.down_proj.weight"


def error(s, shares):
    r = len(shares)
    return float((s[:r] ** 2 * (shares**-2 - 1)).sum() + MASKED_KAPPA * (s[r:] ** 2).sum())


@pytest.mark.parametrize("decay, columns", [(0.3, 6.5), (0.8, 6.5), (0.8, 20.0), (2.0, 3.0)])
def test_no_other_shares_of_the_budget_have_a_smaller_expected_error(decay, columns):
    s = np.arange(1, 65) ** -decay
    found = least_error_shares(s, columns)
    assert found.sum() == pytest.approx(columns) and found.max() <= 1 and (np.diff(found) <= 1e-12).all()
    rng, least = np.random.default_rng(0), error(s, found)
    for r in (1, 2, 3, 5, 8, 13, 21, 34, 64):  # other ranks, at their best shares and around them
        best = capped_shares(s[:r] ** (2 / 3), columns)
        assert error(s, best) >= least - 1e-12
        for _ in range(20):
            other = np.minimum(1, best * np.exp(0.2 * rng.standard_normal(r)))
            other *= min(1, columns / other.sum())
            assert error(s, other) >= error(s, best) - 1e-12


@pytest.mark.parametrize("total, expected", [(5.0, [1, 1, 1]), (3.0, [1, 1, 1]), (2.0, [1, 2 / 3, 1 / 3]), (0.7, None)])
def test_shares_follow_their_weights_up_to_1(total, expected):
    found = capped_shares(np.array([4.0, 2.0, 1.0]), total)
    assert found == pytest.approx(expected or np.array([4, 2, 1]) / 7 * 0.7) and found.sum() <= total


@pytest.mark.parametrize("m, n, cr", [(256, 256, 8), (192, 512, 16), (512, 192, 4)])
def test_it_keeps_its_budget_of_values_and_is_dW_in_the_mean(m, n, cr):
    dW = torch.randn(m, n, generator=torch.Generator().manual_seed(0)) / torch.arange(1, n + 1) ** 0.5
    one = ImPartAuto(compression_ratio=cr).encode(DenseMatrix(NAME, dW), 0)
    assert sum(one.facts["kept"]) == pytest.approx(m * n / cr, rel=0.05)
    U, s, V = (part[..., : one.facts["rank"]] for part in delta_svd(dW))
    encoded = (ImPartAuto(compression_ratio=cr).encode(DenseMatrix(NAME, dW), seed) for seed in range(30))
    mean = sum(each.dense(NAME) for each in encoded) / 30
    kept = (U * s) @ V.T
    assert float((mean * kept).sum() / kept.square().sum()) == pytest.approx(1, abs=0.03)


def test_a_zero_delta_is_nothing_and_one_of_low_rank_is_whole():
    method = ImPartAuto(compression_ratio=2)
    assert method.encode(DenseMatrix(NAME, torch.zeros(8, 12)), 0).encoding == "empty"
    low = torch.outer(torch.arange(1.0, 41), torch.ones(30))
    assert torch.allclose(method.encode(DenseMatrix(NAME, low), 0).dense(NAME), low, rtol=2e-3)
