"""Grids: what their rules promise, a brute-force reference for the fit, goldens by hand, and rows that keep nothing."""

import pytest
import torch

from quantize.grid import fitted_grid, minmax_grid, nearest_codes, storable_zero, top_codes, zero_byte, zero_from_byte


def rounded(W, scale, zero, bits):
    scale, zero = scale[:, None], zero[:, None]
    return (nearest_codes(W, scale, zero, top_codes(bits, W)[:, None]) - zero) * scale


def masked_error(W, mask, grid, bits):
    return ((W - rounded(W, *grid, bits)) * mask).square().sum(1)


def sample(rows=40, columns=200, share=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    return W, torch.rand(rows, columns, generator=generator) < share


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_minmax_contains_zero_and_the_range(bits):
    W, mask = sample()
    W[:5] = W[:5].abs() + 3  # rows whose entries are all far above 0
    scale, zero = minmax_grid(W, mask, bits)
    assert torch.equal(zero, zero.round())
    assert bool(((zero >= 0) & (zero <= 2**bits - 1)).all())
    assert torch.equal(rounded(torch.zeros_like(W), scale, zero, bits), torch.zeros_like(W))
    assert bool((((W - rounded(W, scale, zero, bits)) * mask).abs().amax(1) <= scale * 1.01).all())
    assert torch.equal(scale, scale.to(torch.float16).double())  # what is stored is what was used


def test_minmax_golden():
    W, mask = torch.tensor([[-1.0, 0.4, 2.0, 9.0]]), torch.tensor([[True, True, True, False]])
    scale, zero = minmax_grid(W, mask, 2)  # -1 .. 2 in three steps; the masked 9 does not count
    assert (scale.tolist(), zero.tolist()) == ([1.0], [1.0])
    assert rounded(W, scale, zero, 2).tolist() == [[-1.0, 0.0, 2.0, 2.0]]


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_fit_is_never_worse_than_minmax(bits, share):
    W, mask = sample(share=share, seed=bits)
    fitted = masked_error(W, mask, fitted_grid(W, mask, bits), bits)
    assert bool((fitted <= masked_error(W, mask, minmax_grid(W, mask, bits), bits) * 1.001 + 1e-9).all())


def test_fit_is_close_to_a_full_search():
    W, mask = sample(rows=6)
    found = masked_error(W, mask, fitted_grid(W, mask, 2), 2)
    best = torch.full_like(found, torch.inf)
    for scale in torch.linspace(0.3, 2, 120, dtype=torch.float64):
        for zero in torch.linspace(0.5, 2.5, 60, dtype=torch.float64):
            grid = scale.expand(6), zero.expand(6)
            best = torch.minimum(best, masked_error(W, mask, grid, 2))
    assert bool((found <= best * 1.06).all())


def test_fit_finds_a_grid_that_is_there():
    codes = torch.tensor([[0, 1, 2, 3, 3, 0, 1, 2]], dtype=torch.float64)
    W = (codes - 1.5) * 0.25
    scale, zero = fitted_grid(W, torch.ones_like(W), 2)
    assert (scale.item(), zero.item()) == pytest.approx((0.25, 1.5))


def test_masked_entries_do_not_matter():
    W, mask = sample()
    other = torch.where(mask, W, 100.0)
    for rule in (minmax_grid, fitted_grid):
        assert all(torch.equal(a, b) for a, b in zip(rule(W, mask, 3), rule(other, mask, 3), strict=True))


def test_bits_per_row_equal_row_by_row():
    W, mask = sample(rows=4)
    bits = torch.tensor([8, 3, 2, 2])
    for rule in (minmax_grid, fitted_grid):
        together = rule(W, mask, bits)
        for row in range(4):
            alone = rule(W[row : row + 1], mask[row : row + 1], int(bits[row]))
            assert torch.allclose(torch.stack(alone)[:, 0], torch.stack(together)[:, row], rtol=1e-12)


@pytest.mark.parametrize("rule", [minmax_grid, fitted_grid])
def test_rows_that_keep_nothing_or_one_or_equal_entries(rule):
    W = torch.tensor([[1.0, -2.0, 3.0], [1.0, -2.0, 3.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[False] * 3, [False, True, False], [True] * 3, [True] * 3])
    scale, zero = rule(W, mask, 2)
    assert bool(torch.isfinite(scale).all() and torch.isfinite(zero).all() and (scale > 0).all())
    assert torch.allclose(rounded(W, scale, zero, 2) * mask, W * mask, atol=1e-3)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_a_zero_survives_its_byte(bits):
    top = torch.tensor(2.0**bits - 1)
    zeros = storable_zero(torch.linspace(-10, 300, 1001), top)
    byte = zero_byte(zeros, top)
    assert torch.equal(byte.to(torch.uint8).float(), byte)
    assert torch.equal(zero_from_byte(byte, top), zeros)
    assert torch.equal(zeros.to(torch.float16).float(), zeros)
