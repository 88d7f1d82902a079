"""Bytes counted beforehand are the bytes that are written, and the true ratio is the one asked for."""

import pytest
import torch
from matrices import dare_quantized, deltacome
from matrices import sized_impart as impart_to_size
from safetensors.torch import save

from impart.bit_plan import PAPER_PLAN, checked_plan, cut_plan, plan_bits
from impart.encodings import quantized_entries, quantized_groups, quantized_vectors
from impart.encodings.encoded import Encoded
from impart.encodings.masked import factor_masks, stored_entry_mask
from impart.svd import delta_svd
from sparsify.accounting import Accounting

PLAN, NAME = checked_plan(PAPER_PLAN), "model.layers.11.self_attn.q_proj.weight"


def triplets(m, n, rank):
    """Random vectors with a spectrum; what is counted does not depend on their directions."""
    generator = torch.Generator().manual_seed(0)
    s = torch.arange(1, rank + 1).double().pow(-0.7).add(0.1).float()
    return torch.randn(m, rank, generator=generator), s, torch.randn(n, rank, generator=generator)


def quantized(source: Encoded, grid: str, groupsize: int) -> Encoded:
    """Codes that mean nothing, in the layout and number that real ones have."""
    m, n = source.shape
    masks = factor_masks(NAME, source)
    r = len(masks[0])
    plan, codes = cut_plan(PLAN, r, NAME), tuple(mask.to(torch.uint8) for mask in masks)
    if grid == "compact":
        return quantized_vectors.write(plan, codes, masks, torch.ones(r), torch.zeros(2, r), source)
    group_V, parts, before = torch.arange(n) // groupsize, [], 0
    for _, count in plan:
        parts.append(torch.arange(count) // groupsize + before)
        before = int(parts[-1].max()) + 1
    shapes = (m, before), (r, int(group_V.max()) + 1)
    return quantized_groups.write(
        plan,
        codes,
        masks,
        torch.ones(r),
        tuple(map(torch.ones, shapes)),
        tuple(map(torch.zeros, shapes)),
        (torch.cat(parts), group_V),
        source,
    )


def written_bytes(encoded: Encoded) -> int:
    return len(save({f"{NAME}.{key}": tensor for key, tensor in encoded.tensors.items()}, {"format": "pt"}))


@pytest.mark.parametrize("grid", ["compact", "paper"])
@pytest.mark.parametrize("shape", [(512, 512), (256, 1024), (1000, 333)])
def test_counted_is_written(shape, grid):
    m, n = shape
    accounting = Accounting(PLAN, "paper", grid, groupsize=128)
    source = impart_to_size(*triplets(m, n, 150), name=NAME, cr=32, beta=0.6, C=1, seed=0, accounting=accounting)
    encoded = quantized(source, grid, 128)
    assert len(encoded.tensors["codes"]) == source.facts["quantized_codes"]
    assert written_bytes(encoded) == pytest.approx(source.facts["quantized_bytes"], abs=120)


@pytest.mark.parametrize("cr", [32, 128])
@pytest.mark.parametrize("shape", [(1024, 1024), (1024, 4096), (2048, 2048)])
@pytest.mark.parametrize(("beta", "C"), [(0.6, 1.0), (0.8, 0.5)])
def test_true_ratio_is_the_nominal_one_within_a_percent(shape, cr, beta, C):
    m, n = shape
    source = impart_to_size(
        *triplets(m, n, min(m, n)),
        name=NAME,
        cr=cr,
        beta=beta,
        C=C,
        seed=0,
        accounting=Accounting(PLAN, "bytes", "compact"),
    )
    assert 2 * m * n / written_bytes(quantized(source, "compact", 128)) == pytest.approx(cr, rel=0.01)


@pytest.mark.parametrize(("beta", "C"), [(0.6, 1.0), (0.8, 0.5)])
def test_compact_with_the_paper_s_counting_is_truly_31_at_32(beta, C):
    source = impart_to_size(
        *triplets(2048, 2048, 820),
        name=NAME,
        cr=32,
        beta=beta,
        C=C,
        seed=0,
        accounting=Accounting(PLAN, "paper", "compact"),
    )
    assert 2 * 2048 * 2048 / source.facts["quantized_codes"] == pytest.approx(32, rel=0.005)
    assert 2 * 2048 * 2048 / written_bytes(quantized(source, "compact", 128)) >= 31


def test_the_paper_s_groups_are_counted_too():
    accounting = Accounting(PLAN, "bytes", "paper", groupsize=128)
    source = impart_to_size(*triplets(1024, 1024, 410), name=NAME, cr=32, beta=0.6, C=1, seed=0, accounting=accounting)
    assert 2 * 1024 * 1024 / written_bytes(quantized(source, "paper", 128)) == pytest.approx(32, rel=0.01)


def test_sixteen_bit_values_by_bytes():
    source = impart_to_size(
        *triplets(1024, 1024, 410), name=NAME, cr=32, beta=0.6, C=1, seed=0, accounting=Accounting(plan=None)
    )
    assert 2 * 1024 * 1024 / written_bytes(source) == pytest.approx(32, rel=0.005)
    assert "quantized_bytes" not in source.facts


def test_impart_to_size_is_unbiased():
    dW = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    U, s, V = delta_svd(dW)
    mean = torch.zeros(48, 64)
    for seed in range(200):
        source = impart_to_size(
            U, s, V, name=NAME, cr=6, beta=0.0, C=1, seed=seed, accounting=Accounting(PLAN, "paper")
        )
        mean += source.dense(NAME) / 200
    r = source.facts["rank"]
    truncated = (U[:, :r] * s[:r]) @ V[:, :r].T
    assert (mean - truncated).norm() / truncated.norm() < 0.2


def test_delta_come_keeps_dense_leading_triplets():
    U, s, V = triplets(512, 512, 512)
    source = deltacome(U, s, V, name=NAME, cr=32, accounting=Accounting(PLAN, "paper", masked=False))
    r = source.facts["rank"]
    bits = plan_bits(cut_plan(PLAN, r + 1, NAME)).numpy()
    assert 1024 * bits[:r].sum() <= 16 * 512 * 512 / 32 < 1024 * bits.sum()
    kept_U, kept_s, kept_V = source.factors(NAME)
    assert torch.equal(kept_U, U[:, :r].half().float()) and torch.equal(kept_V, V[:, :r].half().float())
    assert written_bytes(quantized(source, "compact", 128)) == pytest.approx(source.facts["quantized_bytes"], abs=120)


@pytest.mark.parametrize("grid", ["compact", "paper"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_dare_s_share_follows_from_bits_and_ratio(bits, grid):
    dW = torch.randn(512, 640, generator=torch.Generator().manual_seed(0))
    values = dare_quantized(dW, name=NAME, cr=32, bits=bits, seed=0, accounting=Accounting(None, "paper", grid))
    assert values.facts["kept"][0] == pytest.approx(16 / (bits * 32) * dW.numel(), rel=0.05)
    stored = dare_quantized(dW, name=NAME, cr=32, bits=bits, seed=0, accounting=Accounting(None, "bytes", grid))
    mask = stored_entry_mask(NAME, stored)
    group = None if grid == "compact" else torch.arange(640) // 128
    shape = (512, 1) if grid == "compact" else (512, 5)
    encoded = quantized_entries.write(
        mask.to(torch.uint8),
        mask,
        bits,
        torch.ones(shape),
        torch.zeros(512) if grid == "compact" else torch.zeros(shape),
        group,
        1.0,
        stored,
    )
    assert 2 * dW.numel() / written_bytes(encoded) == pytest.approx(32, rel=0.02)
