"""Sparse GPTQ against the paper's steps (quantize/reference.py), and what must hold whatever the weights are."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quantize.grid import fitted_grid, fp16_unit, minmax_grid, nearest_codes, top_codes
from quantize.reference import inverse_factor
from quantize.reference import sparse_gptq as plain
from quantize.sparse_gptq import (
    NotPositiveDefinite,
    inverse_of,
    nearest,
    quantize_groups,
    quantize_vectors,
    sparse_gptq,
)


def problem(rows=37, columns=150, share=0.4, seed=0, tokens=600):
    """W, mask, the Hessian of correlated inputs of very different sizes; float64, so that rounding decides no tie."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    mask = torch.rand(rows, columns, generator=generator) < share
    mix = torch.randn(columns, columns, dtype=torch.float64, generator=generator)
    X = torch.randn(tokens, columns, dtype=torch.float64, generator=generator) @ mix
    X = X * torch.randn(columns, dtype=torch.float64, generator=generator).exp()
    return W * mask, mask, 2 * X.T @ X / tokens


def plain_vectors(W, mask, H, bits, along_rows, damping=0.01):
    """The same with one fitted grid per row or column, and the errors of masked entries spread as well."""
    columns = W.shape[1]
    scale, zero = fitted_grid(W, mask, bits) if along_rows else fitted_grid(W.T, mask.T, bits)
    shape = (-1, 1) if along_rows else (1, -1)
    scale, zero = (x.reshape(shape).expand(W.shape) for x in (scale, zero))
    top = top_codes(bits, W if along_rows else W.T).reshape(shape).expand(W.shape)
    order = torch.argsort(H.diagonal(), descending=True, stable=True)
    H = H + damping * H.diagonal().mean() * torch.eye(columns, dtype=H.dtype)
    W, Q, left = W.clone(), torch.zeros_like(W), order.tolist()
    for j in order.tolist():
        codes = nearest_codes(W[:, j], scale[:, j], zero[:, j], top[:, j])
        Q[:, j] = (codes - zero[:, j]) * scale[:, j] * mask[:, j]
        Hinv = torch.linalg.inv(H[left][:, left])
        left = left[1:]
        W[:, left] -= ((W[:, j] - Q[:, j]) / Hinv[0, 0])[:, None] * Hinv[0, 1:]
    return Q


def cost(W, Q, H):
    return torch.trace((W - Q) @ H @ (W - Q).T).item()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("groupsize", [-1, 1, 32, 97, 128, 140])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_same_codes_as_the_plain_loop(bits, groupsize, act_order):
    W, mask, H = problem(seed=bits)
    Q, codes = plain(W, mask, H, bits, groupsize, 0.01, act_order)
    fast = quantize_groups(W, mask, inverse_of(H, 0.01, act_order), bits, groupsize)
    assert torch.equal(fast.codes.double(), codes)
    assert torch.equal(fast.values(), Q)
    unit = fp16_unit(W)
    in_units = plain(W / unit, mask, H, bits, groupsize, 0.01, act_order)[0]
    assert torch.equal(sparse_gptq(W, mask, H, bits, groupsize, 0.01, act_order), in_units * unit)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("groupsize", [-1, 20, 128])
@pytest.mark.parametrize("rows, columns, share", [(1, 7, 1.0), (5, 1, 0.5), (64, 300, 0.05), (96, 257, 0.9)])
def test_same_codes_for_every_shape_with_bits_per_row(rows, columns, share, groupsize, act_order):
    W, mask, H = problem(rows, columns, share)
    bits = torch.tensor([8, 3, 2, 4])[torch.arange(rows) % 4]
    Q, codes = plain(W, mask, H, bits, groupsize, 0.01, act_order)
    fast = quantize_groups(W, mask, inverse_of(H, 0.01, act_order), bits, groupsize)
    assert torch.equal(fast.codes.double(), codes)
    assert torch.equal(fast.values(), Q)


def test_a_row_of_the_reference_factor_is_that_of_the_inverse_without_the_columns_before_it():
    """What the loop over columns needs at every step: the inverse of the Hessian of the columns that are left."""
    _, _, H = problem(columns=40)
    Hinv = inverse_factor(H, 0.0)
    for q in (0, 1, 17, 39):
        left = torch.linalg.inv(H[q:, q:])
        assert torch.allclose(Hinv[q, q:], left[0] / left[0, 0].sqrt(), rtol=1e-6)


def test_a_mask_of_ones_is_plain_gptq():
    W, _, H = problem()
    ones = torch.ones_like(W, dtype=torch.bool)
    assert torch.equal(sparse_gptq(W, ones, H, 3, 32, 0.05), plain(W, ones, H, 3, 32, 0.05, True)[0])


@pytest.mark.parametrize("along_rows", [True, False])
def test_vectors_same_as_the_plain_loop(along_rows):
    W, mask, H = problem(columns=60)
    bits = torch.full((W.shape[0 if along_rows else 1],), 2)
    bits[:2], bits[2:10] = 8, 3
    fast = quantize_vectors(W, mask, inverse_of(H), bits, along_rows=along_rows)
    assert torch.allclose(fast.values(), plain_vectors(W, mask, H, bits, along_rows), rtol=0, atol=1e-12)


@pytest.mark.parametrize("groupsize", [-1, 64])
def test_identity_hessian_rounds_to_nearest(groupsize):
    W, mask, _ = problem()
    size = W.shape[1] if groupsize < 0 else groupsize
    nearest = []
    for first in range(0, W.shape[1], size):
        part, kept = W[:, first : first + size], mask[:, first : first + size]
        scale, zero = (x[:, None] for x in minmax_grid(part, kept, 2))
        nearest.append((nearest_codes(part, scale, zero, torch.tensor(3.0)) - zero) * scale * kept)
    assert torch.equal(sparse_gptq(W, mask, torch.eye(W.shape[1]).double(), 2, groupsize), torch.cat(nearest, 1))


def test_masked_entries_stay_zero_and_kept_ones_are_on_their_grid():
    W, mask, H = problem()
    for result in (
        quantize_groups(W, mask, inverse_of(H), 2, 32),
        quantize_vectors(W, mask, inverse_of(H), torch.full((37,), 2), along_rows=True),
    ):
        assert bool((result.values()[~mask] == 0).all()) and bool((result.codes[~mask] == 0).all())
        assert int(result.codes.max()) <= 3


@pytest.mark.parametrize("seed", range(5))
def test_error_is_not_above_rounding_to_nearest(seed):
    W, mask, H = problem(seed=seed)
    inverse = inverse_of(H)
    nearest = replace(inverse, factor=torch.eye(len(H), dtype=H.dtype))  # the same order and groups, no error spread
    for bits in (2, 3):
        for groupsize in (-1, 32):
            spread, kept = (quantize_groups(W, mask, x, bits, groupsize).values() for x in (inverse, nearest))
            assert cost(W, spread, H) < cost(W, kept, H)
        vector_bits = torch.full((len(W),), bits)
        spread, kept = (quantize_vectors(W, mask, x, vector_bits, along_rows=True).values() for x in (inverse, nearest))
        assert cost(W, spread, H) < cost(W, kept, H)


def test_bits_per_row_equal_separate_calls():
    W, mask, H = problem()
    bits = torch.full((37,), 2)
    bits[:2], bits[2:20] = 8, 3
    together = sparse_gptq(W, mask, H, bits, 32)
    for first, last, b in ((0, 2, 8), (2, 20, 3), (20, 37, 2)):
        assert torch.equal(together[first:last], sparse_gptq(W[first:last], mask[first:last], H, b, 32))


def test_a_dead_input_is_rounded_to_nearest_and_disturbs_nobody():
    W, mask, H = problem()
    dead = 7
    H[dead], H[:, dead] = 0, 0
    inverse = inverse_of(H)
    assert inverse.dead == 1
    assert torch.isfinite(inverse.factor).all()
    bits = torch.full((37,), 2)
    result = quantize_vectors(W, mask, inverse, bits, along_rows=True)
    scale, zero = fitted_grid(W, mask, bits)
    nearest = (nearest_codes(W[:, dead], scale, zero, torch.tensor(3.0)) - zero) * scale * mask[:, dead]
    assert torch.equal(result.values()[:, dead], nearest)


@pytest.mark.parametrize("act_order", [False, True])
def test_factor_is_that_of_the_inverse(act_order):
    _, _, H = problem()
    inverse = inverse_of(H, 0.02, act_order)
    damped = (H + 0.02 * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype))[inverse.order][:, inverse.order]
    assert torch.equal(inverse.factor, inverse.factor.triu())
    assert torch.allclose(inverse.factor.T @ inverse.factor @ damped, torch.eye(len(H), dtype=H.dtype), atol=1e-8)
    diagonal = H.diagonal()[inverse.order]
    assert torch.equal(diagonal, diagonal.sort(descending=True).values) == act_order


def test_a_hessian_without_a_factor_is_refused():
    H = torch.ones(8, 8)  # rank one
    with pytest.raises(NotPositiveDefinite, match="damping 0 is not positive definite"):
        inverse_of(H, damping=0.0)
    with pytest.raises(NotPositiveDefinite, match="NaN"):
        inverse_of(torch.full((4, 4), torch.nan))
    off_diagonal = torch.eye(4)
    off_diagonal[1, 2] = torch.inf
    with pytest.raises(NotPositiveDefinite, match="Inf"):
        inverse_of(off_diagonal)
    assert torch.isfinite(inverse_of(H, damping=0.01).factor).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_without_a_hessian_every_entry_goes_to_its_nearest_code(bad):
    W, mask, H = problem()
    H[3, 3] = bad
    inverse = nearest(H)
    assert inverse.damping is None and torch.equal(inverse.order, torch.arange(len(H)))
    assert torch.equal(
        quantize_groups(W, mask, inverse, 2, 64).values(),
        sparse_gptq(W, mask, torch.eye(len(H)).double(), 2, 64, act_order=False),
    )


def test_the_size_of_the_weights_does_not_matter():
    """Steps are rounded to fp16, whose smallest numbers are far above those of a delta of 1e-6."""
    W, mask, H = problem()
    for power in (-30, 30):
        assert torch.equal(sparse_gptq(W * 2.0**power, mask, H, 8, 32), sparse_gptq(W, mask, H, 8, 32) * 2.0**power)
    assert not sparse_gptq(torch.zeros_like(W), mask, H, 2).any()


def test_inputs_are_not_changed():
    W, mask, H = problem()
    copies = W.clone(), mask.clone(), H.clone()
    sparse_gptq(W, mask, H, 2, 32)
    quantize_vectors(W, mask, inverse_of(H), torch.full((37,), 2), along_rows=True)
    assert all(torch.equal(a, b) for a, b in zip((W, mask, H), copies, strict=True))


def test_float32_is_enough():
    W, mask, H = problem()
    wide, narrow = sparse_gptq(W, mask, H, 2, 32), sparse_gptq(W.float(), mask, H.float(), 2, 32)
    assert narrow.dtype == torch.float32
    assert cost(W, narrow.double(), H) < 1.2 * cost(W, wide, H)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed here")
def test_the_gpu_kernel_gives_the_codes_of_the_loop_under_tritons_interpreter():
    program = Path(__file__).with_name("interpreted_kernel.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(program.parents[1])}
    ended = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split() == ["0.0"] * 8
