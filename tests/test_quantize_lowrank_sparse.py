"""LowRank+Sparse in codes: without bias to L + mean|R| sign(R), every byte counted, and an artifact in one step."""

import re

import numpy as np
import pytest
import torch

import delta as delta_script
from impart.artifact import open_delta
from impart.bit_plan import BITS
from impart.encodings import head_and_tail
from impart.encodings.headers import header_bytes
from impart.errors import InputError
from impart.method import DenseMatrix
from quantize import sparse_llama
from quantize.methods.bitdelta import BitDelta
from quantize.methods.lowrank_sparse import GRID_ERRORS, LowRankSigns
from quantize.vectors import on_grid
from sparsify.shares import SHARES, best_alpha, shares_of_model

NAME = "model.layers.1.mlp.down_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"
MODELS = ("assets/tiny/code", "assets/tiny/data/code_validation.jsonl")


def random_delta(m=96, n=64, decay=0.8):
    """dW (m, n) with singular values that fall as k^-decay."""
    generator = torch.Generator().manual_seed(0)
    N = min(m, n)
    U, V = (torch.linalg.qr(torch.randn(rows, N, generator=generator)).Q for rows in (m, n))
    return (U * (0.01 * torch.arange(1, N + 1).float() ** -decay)) @ V.T


def encoded(dW, seed=0, cr=8, **keys):
    keys = {"head": 0.5, "tail_scale": 1.0, **keys}
    return LowRankSigns(compression_ratio_qt=cr, **keys).resolved().encode(DenseMatrix(NAME, dW), seed)


@pytest.mark.parametrize("a", [1.0, 0.5])
def test_its_mean_over_the_seeds_is_the_head_and_a_times_the_signs_of_the_rest(a):
    dW, seeds = random_delta(), 400
    one = encoded(dW, tail_scale=a)
    L = head_and_tail.part_of(one, "head").dense(NAME)
    R = dW - L
    expected = L + a * R.abs().mean() * R.sign()
    mean = sum(encoded(dW, seed, tail_scale=a).dense(NAME) for seed in range(seeds)) / seeds
    keep = one.facts["tail"]["keep"] / 65536
    assert 0.2 < keep < 0.9
    z = (mean - expected) / (a * R.abs().mean() * ((1 / keep - 1) / seeds) ** 0.5)
    assert 0.9 < float(z.square().mean()) < 1.1 and abs(float(z.mean())) < 0.06


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_head_is_the_leading_triplets_within_the_steps_of_their_grids(bits):
    dW = random_delta()
    one = encoded(dW, cr=3, head=1.0, head_bits=bits)
    assert one.encoding == "quantized_vectors" and set(one.tensors) == {"codes", "s", "zeros"}
    U, s, Vt = torch.linalg.svd(dW)
    r = one.facts["rank"]
    best = (U[:, :r] * s[:r]) @ Vt[:r]
    error = float((one.dense(NAME) - best).norm() / best.norm())
    assert error < {2: 0.5, 3: 0.27, 4: 0.14, 8: 0.01}[bits]


def test_signs_alone_are_those_of_bitdelta():
    dW = random_delta()
    ours, theirs = (
        encoded(dW, seed=5, cr=16, head=0.0),
        BitDelta(compression_ratio_qt=16).encode(DenseMatrix(NAME, dW), 5),
    )
    assert ours.encoding == theirs.encoding == "signs" and ours.facts["mu"] == theirs.facts["mu"]
    whole = encoded(dW, seed=5, cr=2, head=0.0)  # all signs leave room for triplets
    assert whole.encoding == "head_and_tail" and whole.facts["tail"]["keep"] == 65536


@pytest.mark.parametrize("m, n, cr", [(1024, 1024, 8), (1024, 1024, 64), (1024, 1536, 32), (1024, 1024, 128)])
def test_every_stored_byte_is_within_one_percent_of_nominal(m, n, cr):
    dW = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    for head in (0.3, 0.7):
        one = encoded(dW, cr=cr, head=head)
        parts = {part: head_and_tail.part_of(one, part).encoding for part in ("head", "tail")}
        headers = sum(header_bytes(f"{NAME}.{part}", name, 2 * m * n // cr, ("keep",)) for part, name in parts.items())
        assert one.nbytes + headers == pytest.approx(2 * m * n / cr, rel=0.01)


def test_auto_scales_the_signs_so_that_they_tell_alpha_of_what_the_head_leaves():
    dW, seeds = random_delta(decay=0.3), 200
    one = encoded(dW, head="auto", tail_scale="auto")
    R = dW - head_and_tail.part_of(one, "head").dense(NAME)
    spread = float(R.square().mean() / R.abs().mean() ** 2)
    alpha = best_alpha(one.facts["tail"]["keep"] / 65536, spread)
    tails = (head_and_tail.part_of(encoded(dW, seed, head="auto", tail_scale="auto"), "tail") for seed in range(seeds))
    told = sum(float((tail.dense(NAME) * R).sum() / R.square().sum()) for tail in tails) / seeds
    assert told == pytest.approx(alpha, rel=0.01) and 0.6 < alpha < 1


@pytest.mark.parametrize("bits", BITS)
def test_the_error_of_a_triplet_on_its_grids_is_the_one_that_the_rule_reckons_with(bits):
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(8, 1024, generator=generator), torch.randn(8, 1024, generator=generator)
    errors = [
        float((torch.outer(a, b) - torch.outer(x, y)).square().sum() / torch.outer(a, b).square().sum())
        for a, b, x, y in zip(u, v, on_grid(u, bits).values(), on_grid(v, bits).values(), strict=True)
    ]
    assert sum(errors) / len(errors) == pytest.approx(GRID_ERRORS[bits], rel=0.1)


def test_what_it_cannot_do_is_said(called, tmp_path):
    with pytest.raises(InputError, match=re.escape(f"{NAME} (8 x 8): compression_ratio_qt=32 leaves no byte")):
        LowRankSigns(compression_ratio_qt=32).check(NAME, 8, 8)
    for word, expected in (
        ("tail_scale=0", "tail_scale=0 stores entries that are all 0"),
        ("head=2", "head: 2.0 is out of range"),
        ("head_bits=5", "head_bits"),
    ):
        settings = ("method=lowrank_sparse", "baseModel=assets/tiny/base", "compression_ratio_qt=32", word)
        ended = called(sparse_llama.main, *MODELS, "--save_compressed_delta_dir", tmp_path / "x", *settings)
        assert ended.code == 2 and ended.err.count("\n") == 1 and expected in ended.err, ended.err


def test_its_artifact_has_the_true_ratio_and_the_same_bytes_again(called, tmp_path):
    row = ("--config", "configs/rows/lowrank_sparse_qt.yaml", "baseModel=assets/tiny/base", "compression_ratio_qt=16")
    for folder in ("a", "b"):
        made = called(sparse_llama.main, *MODELS, "--save_compressed_delta_dir", tmp_path / folder, *row, "seed=1")
        assert made.code == 0, made.err
    delta, again = open_delta(tmp_path / "a"), open_delta(tmp_path / "b")
    assert delta.manifest["shards"] == again.manifest["shards"]
    assert delta.sizes().linear_ratio == pytest.approx(16, rel=0.02)
    assert delta.manifest["kind"] == "quantized" and delta.manifest["settings"]["head_bits"] == 3
    parts = [head_and_tail.part_of(delta.stored(Q), part).dense(Q) for part in ("head", "tail")]
    assert torch.equal(delta.reconstruct(Q), parts[0] + parts[1])
    models = ("--base_model", "assets/tiny/base", "--finetuned_model", "assets/tiny/code")
    merged = called(delta_script.main, "--merge", "--delta_path", delta.path, *models, "--save_path", tmp_path / "m")
    assert merged.code == 0, merged.err


def test_bytes_of_one_model_go_to_the_least_sum_of_errors():
    """Errors c / share: the least sum under one total has shares that grow as sqrt(c)."""
    c, sizes = {"a": 1.0, "b": 4.0, "c": 1.0}, {"a": 100.0, "b": 100.0, "c": 200.0}
    found = shares_of_model({name: value * sizes[name] / SHARES for name, value in c.items()}, sizes)
    assert sum(found[name] * sizes[name] for name in sizes) == pytest.approx(400)
    assert found["b"] / found["a"] == pytest.approx(2, rel=0.1) and found["a"] == pytest.approx(found["c"], rel=0.1)
    starving = {"a": np.where(SHARES > 1.5, 1.0 / SHARES, np.inf), "b": 1 / SHARES}
    found = shares_of_model(starving, {"a": 100.0, "b": 100.0})
    assert found["a"] > 1.5 > found["b"]
    with pytest.raises(InputError, match="budget: model leaves some matrix no byte"):
        shares_of_model({name: np.where(SHARES > 1.5, 1.0, np.inf) for name in "ab"}, {"a": 100.0, "b": 100.0})


def test_one_budget_for_the_model_meets_the_ratio_where_small_matrices_alone_could_not(called, tmp_path):
    with pytest.raises(InputError, match="leaves no byte beside the shard's header"):
        LowRankSigns(compression_ratio_qt=240).check(Q, 64, 192)
    LowRankSigns(compression_ratio_qt=240, budget="model").check(Q, 64, 192)
    row = ("method=lowrank_sparse", "baseModel=assets/tiny/base", "compression_ratio_qt=48", "budget=model")
    made = called(sparse_llama.main, *MODELS, "--save_compressed_delta_dir", tmp_path / "d", *row)
    assert made.code == 0, made.err
    delta = open_delta(tmp_path / "d")
    assert delta.sizes().linear_ratio == pytest.approx(48, rel=0.03)
    assert delta.manifest["settings"]["budget"] == "model" and "shares" not in delta.manifest["settings"]
    wrong = called(sparse_llama.main, *MODELS, "--save_compressed_delta_dir", tmp_path / "x", *row, "head=0.5")
    assert wrong.code == 2 and "budget: model divides the bytes by the rule of head: auto" in wrong.err
