"""Quantized encodings: what is read back is what was meant, code by code, and takes the bytes that it should."""

import numpy as np
import pytest
import torch

from impart.bit_plan import plan_bits, plan_spans
from impart.encodings import (
    quantized_entries,
    quantized_groups,
    quantized_vectors,
    signs,
    sparse_entries,
    sparse_svd,
    svd,
)
from impart.encodings.masked import factor_masks, stored_entry_mask
from impart.packing import packed_bytes

M, N, PLAN = 37, 53, [[8, 2], [3, 5], [2, 12]]
RANK = sum(count for _, count in PLAN)


def sparse_source(mask="bernoulli", drop=(0.05, 0.9)):
    generator = torch.Generator().manual_seed(0)
    U, V = torch.randn(M, RANK, generator=generator), torch.randn(N, RANK, generator=generator)
    s = torch.linspace(5, 0.5, RANK)
    return sparse_svd.write(U, s, V, np.linspace(*drop, RANK), seed=3, name="w", mask=mask, rescale=True)


def masks_of(source):
    return factor_masks("w", source)


def random_codes(masks):
    generator, bits = torch.Generator().manual_seed(1), plan_bits(PLAN)[:, None]
    return tuple((torch.rand(mask.shape, generator=generator) * 2.0**bits).to(torch.uint8) * mask for mask in masks)


def dense_source():
    generator = torch.Generator().manual_seed(0)
    return svd.write(
        torch.randn(M, RANK, generator=generator),
        torch.linspace(5, 0.5, RANK),
        torch.randn(N, RANK, generator=generator),
        torch.float16,
    )


@pytest.mark.parametrize("source", [sparse_source(), sparse_source("exact_count"), dense_source()])
def test_one_grid_per_vector(source):
    masks = masks_of(source)
    codes = random_codes(masks)
    steps, zero_bytes = torch.linspace(3, 0.1, RANK), torch.randint(0, 256, (2, RANK))
    encoded = quantized_vectors.write(PLAN, codes, masks, steps, zero_bytes, source)
    zeros = zero_bytes * 2.0 ** plan_bits(PLAN) / 256
    U, V = ((c.float() - zero[:, None]) * mask for c, zero, mask in zip(codes, zeros, masks, strict=True))
    stored_steps = (steps / 3).half().float() * 3
    assert torch.equal(encoded.dense("w"), (U.T * stored_steps) @ V)
    sections = [int(mask[first:last].sum()) for mask in masks for _, first, last in plan_spans(PLAN)]
    assert len(encoded.tensors["codes"]) == sum(
        packed_bytes(count, bits) for count, bits in zip(sections, [8, 3, 2] * 2, strict=True)
    )
    overhead = sum(x.nbytes for key, x in encoded.tensors.items() if key != "codes")
    assert overhead == RANK * (2 + 2 + (2 if "keep" in source.tensors else 0))
    assert encoded.facts["kept"] == source.facts["kept"]


@pytest.mark.parametrize("groupsize", [4, 128])
def test_grids_by_groups(groupsize):
    source, generator = sparse_source(), torch.Generator().manual_seed(2)
    masks = masks_of(source)
    codes = random_codes(masks)
    group_V = torch.randperm(N, generator=generator) // groupsize
    parts, before = [], 0
    for _, first, last in plan_spans(PLAN):
        part = torch.randperm(last - first, generator=generator) // groupsize
        parts.append(part + before)
        before = int(parts[-1].max()) + 1
    group_U = torch.cat(parts)
    scales = torch.rand(M, before, generator=generator).half(), torch.rand(RANK, int(group_V.max()) + 1).half()
    bits_of_group = torch.zeros(before, dtype=torch.long).scatter(0, group_U, plan_bits(PLAN))
    zeros = tuple(
        (torch.rand(shape, generator=generator) * 2.0**bits).floor()
        for shape, bits in ((scales[0].shape, bits_of_group), (scales[1].shape, plan_bits(PLAN)[:, None]))
    )
    s = torch.linspace(5, 0.5, RANK)
    encoded = quantized_groups.write(PLAN, codes, masks, s, scales, zeros, (group_U, group_V), source)
    U = (codes[0].T.float() - zeros[0][:, group_U]) * scales[0].float()[:, group_U] * masks[0].T
    V = (codes[1].float() - zeros[1][:, group_V]) * scales[1].float()[:, group_V] * masks[1]
    assert torch.equal(encoded.dense("w"), (U * ((s / 5).half().float() * 5)) @ V)


@pytest.mark.parametrize("groupsize", [None, 16])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_entries(bits, groupsize):
    generator = torch.Generator().manual_seed(0)
    source = sparse_entries.write(torch.randn(M, N, generator=generator) * 1e-5, 0.3, seed=4, name="w")
    mask = stored_entry_mask("w", source)
    codes = torch.randint(0, 2**bits, (M, N), generator=generator).to(torch.uint8) * mask
    groups = 1 if groupsize is None else -(-N // groupsize)
    scale, unit = torch.rand(M, groups, generator=generator) + 0.1, 1e-6
    group = None if groupsize is None else torch.randperm(N, generator=generator) // groupsize
    zero = torch.randint(0, 256, (M,)) if groupsize is None else torch.randint(0, 2**bits, (M, groups))
    encoded = quantized_entries.write(codes, mask, bits, scale, zero, group, unit, source)
    stored = scale.half().float() * unit
    columns = torch.zeros(N, dtype=torch.long) if group is None else group
    shift = (zero * 2.0**bits / 256)[:, None] if group is None else zero[:, columns]
    expected = (codes.float() - shift) * mask * stored[:, columns]
    assert torch.equal(encoded.dense("w"), expected)
    assert len(encoded.tensors["codes"]) == packed_bytes(int(mask.sum()), bits)


def test_more_than_256_groups():
    columns = 700
    source = sparse_entries.write(torch.randn(5, columns), 0.5, seed=4, name="w")
    mask = stored_entry_mask("w", source)
    group = torch.randperm(columns, generator=torch.Generator().manual_seed(0)) // 2  # 350 groups
    scale = torch.arange(350).expand(5, 350) / 349 + 0.0
    encoded = quantized_entries.write(mask.to(torch.uint8), mask, 2, scale, torch.zeros(5, 350), group, 1.0, source)
    expected = mask * scale.half().float()[:, group]
    assert torch.equal(encoded.dense("w"), expected)


@pytest.mark.parametrize("keep_ratio", [1.0, 0.25])
def test_signs(keep_ratio):
    dW = torch.randn(M, N, generator=torch.Generator().manual_seed(0))
    dW[:, ::3] = 0
    dW[:, ::6] = -0.0
    encoded = signs.write(dW, 0.5, name="w", keep_ratio=keep_ratio, seed=1)
    back = encoded.dense("w")
    kept = back != 0
    # BitDelta's code: mask = ones; mask[diff < 0] = 0; weight = (2 * mask - 1) * scale
    assert torch.equal(back[kept], torch.where(dW[kept] < 0, -0.5, 0.5) / keep_ratio)
    assert int(kept.sum()) == encoded.facts["kept"][0]
    assert abs(int(kept.sum()) / (M * N) - keep_ratio) < 0.05
    assert len(encoded.tensors["codes"]) == packed_bytes(int(kept.sum()), 1)


def test_without_vectors_of_low_bits():
    """A rank that ends inside the plan's first entries."""
    plan = [[8, 2], [3, 1]]
    generator = torch.Generator().manual_seed(0)
    source = svd.write(
        torch.randn(M, 3, generator=generator),
        torch.tensor([3.0, 2, 1]),
        torch.randn(N, 3, generator=generator),
        torch.float16,
    )
    masks = masks_of(source)
    codes = tuple(torch.full(mask.shape, 5, dtype=torch.uint8) for mask in masks)
    encoded = quantized_vectors.write(plan, codes, masks, torch.ones(3), torch.zeros(2, 3), source)
    assert torch.equal(encoded.dense("w"), torch.full((M, N), 75.0))


@pytest.mark.cuda
def test_factors_are_bit_exact_on_the_gpu():

    source = sparse_source()
    masks = masks_of(source)
    encoded = quantized_vectors.write(PLAN, random_codes(masks), masks, torch.ones(RANK), torch.zeros(2, RANK), source)
    for ours, theirs in zip(encoded.factors("w"), encoded.to("cuda").factors("w"), strict=True):
        assert torch.equal(ours, theirs.cpu())
