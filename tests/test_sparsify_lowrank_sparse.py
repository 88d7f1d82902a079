"""LowRank+Sparse: DARE and LowRank at its ends, without bias between them, sizes as asked for, and an artifact."""

import re
import shutil

import pytest
import torch
from manifests import edited
from matrices import dare

import delta as delta_script
from impart.artifact import open_delta
from impart.encodings import head_and_tail
from impart.encodings.headers import header_bytes
from impart.errors import InputError
from impart.method import DenseMatrix
from impart.svd import delta_svd
from merge import merge
from quantize import sparse_llama
from serve import lora
from sparsify.methods.lowrank import LowRank
from sparsify.methods.lowrank_sparse import LowRankSparse
from sparsify.shares import KAPPA, best_alpha

NAME = "model.layers.1.mlp.down_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"


def random_delta(m=96, n=64, decay=0.8):
    """dW (m, n) with singular values that fall as k^-decay."""
    generator = torch.Generator().manual_seed(0)
    N = min(m, n)
    U, V = (torch.linalg.qr(torch.randn(rows, N, generator=generator)).Q for rows in (m, n))
    return (U * (0.01 * torch.arange(1, N + 1).float() ** -decay)) @ V.T


def encoded(dW, seed=0, cr=4, **keys):
    keys = {"tail_scale": 1.0, **keys}
    return LowRankSparse(compression_ratio=cr, **keys).resolved().encode(DenseMatrix(NAME, dW), seed)


def same(a, b):
    tensors = a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(a.tensors[key], b.tensors[key]) for key in a.tensors
    )
    return tensors and a.encoding == b.encoding and a.facts == b.facts


@pytest.mark.parametrize("m, n", [(96, 64), (64, 96), (50, 50)])
@pytest.mark.parametrize("cr", [2, 7, 30])
def test_its_ends_are_dare_and_lowrank_byte_for_byte(m, n, cr):
    dW = random_delta(m, n)
    assert same(encoded(dW, seed=3, cr=cr, head=0.0), dare(dW, name=NAME, cr=cr, seed=3))
    assert same(encoded(dW, cr=cr, head=1.0), LowRank(compression_ratio=cr).encode(DenseMatrix(NAME, dW), 0))


@pytest.mark.parametrize("a", [1.0, 0.5])
def test_its_mean_over_the_seeds_is_the_head_and_a_times_the_rest(a):
    dW, seeds = random_delta(), 400
    one = encoded(dW, head=0.6, tail_scale=a)
    L = head_and_tail.part_of(one, "head").dense(NAME)
    mean = sum(encoded(dW, seed, head=0.6, tail_scale=a).dense(NAME) for seed in range(seeds)) / seeds
    keep = one.facts["tail"]["keep"] / 65536
    deviation = a * (dW - L).abs() * ((1 / keep - 1) / seeds) ** 0.5  # of the mean of `seeds` draws, entry by entry
    z = (mean - (L + a * (dW - L))) / deviation
    assert 0.9 < float(z.square().mean()) < 1.1 and abs(float(z.mean())) < 0.06
    assert one.facts["head"]["rank"] == int(0.6 * 96 * 64 / 4 / 160) == 5


@pytest.mark.parametrize("m, n, cr", [(1024, 1024, 8), (1024, 1024, 128), (1024, 1536, 32)])
def test_with_accounting_bytes_every_stored_byte_is_within_one_percent(m, n, cr):
    dW = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    for head in (0.0, 0.5):
        one = encoded(dW, cr=cr, head=head, accounting="bytes")
        parts = [one] if head == 0 else [head_and_tail.part_of(one, part) for part in ("head", "tail")]
        headers = sum(header_bytes(f"{NAME}.tail", part.encoding, 2 * m * n // cr) for part in parts)
        assert one.nbytes + headers == pytest.approx(2 * m * n / cr, rel=0.01)


def test_a_head_that_leaves_nothing_has_no_tail_and_a_zero_delta_no_byte():
    low = torch.outer(torch.ones(40), torch.ones(30))
    one = encoded(low, cr=2, head=0.5)
    assert one.facts["head"]["rank"] == 1 and torch.allclose(one.dense(NAME), low, atol=1e-3)
    assert encoded(torch.zeros(40, 30)).encoding == "empty"
    assert encoded(random_delta(8, 8), cr=16, head=0.9).encoding == "sparse_entries"  # not one triplet fits


def test_what_it_cannot_do_is_said():
    with pytest.raises(InputError, match="tail_scale=0 stores entries that are all 0"):
        LowRankSparse(compression_ratio=4, tail_scale=0.0).resolved()
    with pytest.raises(InputError, match=re.escape(f"{NAME} (8 x 8): compression_ratio=32 leaves no byte")):
        LowRankSparse(compression_ratio=32, accounting="bytes").check(NAME, 8, 8)


def test_its_artifact_is_one_like_every_other(called, tiny_deltas, tmp_path):
    path = tiny_deltas("lowrank_sparse", "code")
    info = called(delta_script.main, "--info", path)
    assert info.code == 0 and "kept values of the tail" in info.out and "U of the head" in info.out
    delta, one = open_delta(path), open_delta(path).stored(Q)
    parts = [head_and_tail.part_of(one, part).dense(Q) for part in ("head", "tail")]
    assert torch.equal(delta.reconstruct(Q), parts[0] + parts[1]) and delta.rank(Q) is None
    models = ("--ptm_pth", "assets/tiny/base", "--math_pth", "assets/tiny/math", "--code_pth", path)
    masked = ("mask=lowrank_sparse", "sparsity=0.5", "head=0.3")
    merged = called(merge.main, "--merge_method", "ta_0.5", *models, "--save_pth", tmp_path / "merged")
    assert merged.code == 0, merged.err
    models = (*models[:-1], "assets/tiny/code")
    merged = called(merge.main, "--merge_method", "ta_0.5", *models, "--save_pth", tmp_path / "masked", *masked)
    assert merged.code == 0, merged.err


def test_what_reads_factors_alone_says_so_in_one_line(called, tiny_deltas, tmp_path):
    path = tiny_deltas("lowrank_sparse", "code")
    adapter = called(lora.main, path, "--out", tmp_path / "adapter")
    assert adapter.code == 2 and "as head_and_tail, which has no low-rank factors; serve it" in adapter.err
    saved = ("--saved_delta_path", path, "--save_compressed_delta_dir", tmp_path / "q")
    codes = called(sparse_llama.main, "assets/tiny/code", "assets/tiny/data/code_validation.jsonl", *saved)
    assert codes.code == 2 and "a sum that sparse GPTQ does not quantize; method=lowrank_sparse" in codes.err


@pytest.mark.parametrize(
    "words, change",
    [
        ("head.encoding is 'signs', not one of svd, quantized_vectors", lambda m: m["head"].update(encoding="signs")),
        ("tail is missing", lambda m: m.pop("tail")),
        ("those of its parts", lambda m: m.update(kept=[1, 2, 3])),
        ("head.rank is 999", lambda m: m["head"].update(rank=999)),
        ("tail.keep is 0", lambda m: m["tail"].update(keep=0)),
        ("the tensors of svd", lambda m: m.update(tensors=m["tensors"][1:])),
        ("the tensors of head_and_tail", lambda m: m.update(tensors=[*m["tensors"], "x"])),
    ],
)
def test_a_part_that_is_wrong_is_named_on_opening(tiny_deltas, tmp_path, words, change):
    copy = shutil.copytree(tiny_deltas("lowrank_sparse", "code"), tmp_path / "delta")
    with edited(copy) as manifest:
        change(manifest["matrices"][Q])
    with pytest.raises(InputError, match=re.escape(words)):
        open_delta(copy)


def expected_error(s, r, keep, alpha):
    """J by its definition: what is missing of R in the mean, KAPPA times, and the noise of alpha R xi / f."""
    energy = float(s[r:].square().sum())
    return KAPPA * (1 - alpha) ** 2 * energy + alpha**2 * (1 / keep - 1) * energy


@pytest.mark.parametrize("decay, cr", [(0.1, 4), (0.8, 4), (0.8, 16), (1.5, 8)])
def test_auto_takes_the_rank_and_the_factor_of_the_least_expected_error(decay, cr):
    dW = random_delta(decay=decay)
    one = encoded(dW, cr=cr, head="auto", tail_scale="auto")
    method = LowRankSparse(compression_ratio=cr)
    budget, s = method.budget(NAME, *dW.shape), delta_svd(dW)[1]
    found = {}
    for r in range(budget.rank(1.0) + 1):
        keep = budget.keep(r)
        found[r] = min((expected_error(s, r, keep, alpha), alpha) for alpha in torch.linspace(0, 1, 1001).tolist())
    best = min(found, key=lambda r: found[r][0])
    assert (one.facts["head"]["rank"] if "head" in one.facts else 0) == best
    assert best_alpha(budget.keep(best), spread=1.0) == pytest.approx(found[best][1], abs=1e-3)


def test_auto_prefers_triplets_where_the_spectrum_falls_and_the_sample_where_it_does_not():
    ranks = []
    for decay in (0.0, 0.5, 1.0, 2.0):
        one = encoded(random_delta(decay=decay), cr=4, head="auto", tail_scale="auto")
        ranks.append(one.facts["head"]["rank"] if "head" in one.facts else 0)
    assert ranks[0] == 0 and ranks[1] <= ranks[2] <= ranks[3] and ranks[3] > 3
