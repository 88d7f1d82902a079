"""Embedding and head among the compressed matrices: by name, with added tokens, tied, and in all that reads a delta."""

import json

import pytest
import torch
from checkpoints import llama_shapes, random_weights, tuned_weights, write_checkpoint

import delta as delta_script
from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.overlay import open_overlay
from merge import merge
from serve import lora
from sparsify import sparsify

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHAPES = llama_shapes(hidden=24, intermediate=40, kv=12, vocabulary=30)


def pair_of(folder, added=0, tied=False):
    """A pair whose embedding and head changed, with `added` tokens more (less) in the fine-tuned model."""
    base = random_weights(SHAPES, dtype=torch.float32)
    if tied:
        base[HEAD] = base[EMBEDDING].clone()
    tuned = tuned_weights(base)
    for seed, name in enumerate((EMBEDDING, HEAD)):
        more = torch.randn(30 + max(added, 0), 24, generator=torch.Generator().manual_seed(seed)) * 0.05
        more[:30] = base[name] + 0.1 * more[:30]
        tuned[name] = more[: 30 + added]
    if tied:
        tuned[HEAD] = tuned[EMBEDDING].clone()
    config = {"tie_word_embeddings": tied}
    return (
        write_checkpoint(folder / "base", base, config=config),
        write_checkpoint(folder / "tuned", tuned, config=config),
    )


def compressed(called, pair, path, *settings):
    models = (f"base_model={pair[0]}", f"ftm_dir={pair[1]}", f"save_dir={path}", "--threads", "1")
    ended = called(sparsify.main, *models, *(settings or ("method=lossless",)))
    assert ended.code == 0, ended.err
    return open_delta(path)


def rebuilt(called, path, out):
    ended = called(delta_script.main, "--merge", "--delta_path", path, "--save_path", out)
    assert ended.code == 0, ended.err
    return open_checkpoint(out)


def assert_same(ours, theirs):
    assert ours.names() == theirs.names()
    for name in ours.names():
        assert ours.spec(name) == theirs.spec(name) and torch.equal(ours.tensor(name), theirs.tensor(name)), name


@pytest.mark.parametrize("added", [0, 3, -4])
def test_common_rows_are_compressed_and_new_ones_travel_whole(called, tmp_path, added):
    pair = pair_of(tmp_path, added)
    delta = compressed(called, pair, tmp_path / "d")
    part = {0: "", 3: "[:30]", -4: "[:26]"}[added]
    assert {EMBEDDING + part, HEAD + part} < set(delta.names())
    assert [name for name in delta.extras() if "[" in name] == [f"{HEAD}[30:]", f"{EMBEDDING}[30:]"] * (added > 0)
    assert_same(rebuilt(called, tmp_path / "d", tmp_path / "m"), open_checkpoint(pair[1]))
    assert open_overlay(tmp_path / "d").shapes()[EMBEDDING] == (30 + added, 24)


def test_the_default_of_other_methods_leaves_them_whole(called, tmp_path):
    delta = compressed(called, pair_of(tmp_path), tmp_path / "d", "method=dare", "compression_ratio=1")
    assert {EMBEDDING, HEAD} <= set(delta.extras())


@pytest.mark.parametrize(
    "types, expected",
    [
        ("[linear, embed_tokens]", {EMBEDDING}),
        ("[linear, embeddings]", {EMBEDDING, HEAD}),
        ("[lm_head]", {HEAD}),
        ("embeddings", {EMBEDDING, HEAD}),
    ],
)
def test_weight_types_name_them(called, tmp_path, types, expected):
    settings = ("method=dare", "compression_ratio=1", f"weight_types={types}")
    delta = compressed(called, pair_of(tmp_path, added=2), tmp_path / "d", *settings)
    found = {name.partition("[")[0] for name in delta.names() if "layers" not in name}
    assert found == expected and ("linear" in types) == any("layers" in name for name in delta.names())
    whole, tuned = rebuilt(called, tmp_path / "d", tmp_path / "m"), open_checkpoint(tmp_path / "tuned")
    assert all(torch.allclose(whole.tensor(name), tuned.tensor(name), atol=1e-4) for name in tuned.names())
    assert "embed_tokens" in called(delta_script.main, "--info", tmp_path / "d").out


def test_a_tied_head_travels_once(called, tmp_path):
    pair = pair_of(tmp_path, tied=True)
    for settings in (
        (),
        ("method=dare", "compression_ratio=1"),
        ("method=lowrank", "compression_ratio=2", "weight_types=embeddings"),
    ):
        delta = compressed(called, pair, tmp_path / f"d{len(settings)}", *settings)
        assert HEAD not in delta.names() and HEAD not in delta.extras() and HEAD in delta.manifest["dropped"]
    model = rebuilt(called, tmp_path / "d0", tmp_path / "m")
    assert HEAD not in model and torch.equal(model.tensor(EMBEDDING), open_checkpoint(pair[1]).tensor(EMBEDDING))
    assert model.fingerprint() == open_checkpoint(pair[1]).fingerprint()


def test_merging_takes_rows_as_those_of_the_checkpoint(called, tmp_path):
    pair = pair_of(tmp_path)
    compressed(called, pair, tmp_path / "d")
    for name, model in (("of_delta", tmp_path / "d"), ("of_model", pair[1])):
        models = ("--ptm_pth", pair[0], "--math_pth", model, "--save_pth", tmp_path / name, "--threads", "1")
        ended = called(merge.main, "--merge_method", "ta_0.7", *models)
        assert ended.code == 0, ended.err
    assert_same(open_checkpoint(tmp_path / "of_delta"), open_checkpoint(tmp_path / "of_model"))


def test_an_adapter_says_that_it_leaves_them_out(called, tmp_path):
    settings = ("method=lowrank", "compression_ratio=2", "weight_types=[linear, embeddings]")
    compressed(called, pair_of(tmp_path, added=2), tmp_path / "d", *settings)
    ended = called(lora.main, tmp_path / "d", "--out", tmp_path / "l")
    assert ended.code == 0, ended.err
    line = next(line for line in ended.out.splitlines() if line.startswith("embeddings and head"))
    assert line.split()[3] == "4"  # the common rows of both, and their new ones


def test_figures_of_layers_leave_them_out(called, tmp_path):
    from eval import tables

    settings = ("method=lowrank", "compression_ratio=2", "weight_types=[linear, embeddings]")
    compressed(called, pair_of(tmp_path), tmp_path / "d", *settings)
    ended = called(tables.main, "--delta", tmp_path / "d", "--out", tmp_path / "figures")
    assert ended.code == 0 and (tmp_path / "figures" / "spectra.png").is_file(), ended.err


def test_rows_that_do_not_fit_are_one_line(called, tmp_path):
    from impart.manifest import CHECKSUM, checksum

    compressed(called, pair_of(tmp_path, added=2), tmp_path / "d")
    file = tmp_path / "d" / "delta.json"
    manifest = json.loads(file.read_text())
    assert manifest["extras"][f"{EMBEDDING}[30:]"]["shape"] == [2, 24]
    manifest["extras"][f"{EMBEDDING}[30:]"]["shape"] = [24, 2]
    manifest[CHECKSUM] = checksum(manifest)
    file.write_text(json.dumps(manifest))
    ended = called(delta_script.main, "--merge", "--delta_path", tmp_path / "d", "--save_path", tmp_path / "m")
    assert ended.code == 2 and ended.err.startswith("error: ")
