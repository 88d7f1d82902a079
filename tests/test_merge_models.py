"""Models of a merge: rows of checkpoints and artifacts, and masks applied on the fly."""

import pytest
import torch
from checkpoints import llama_shapes, random_weights, tuned_weights, write_checkpoint

from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.errors import InputError
from merge import models
from merge.models import CheckpointModel, CheckpointRows, DeltaModel, Scratch, open_models
from merge.premask import PreMask
from merge.settings import ModelEntry
from sparsify import sparsify
from sparsify.methods.dare import Dare
from sparsify.methods.impart import ImPart

CPU = torch.device("cpu")
QUERY, NORM, EMBEDDING = ("model.layers.1.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight")


def entry(path, premask=None, name="math", weight=1.0):
    return ModelEntry(name, str(path), weight, premask)


@pytest.mark.parametrize(("form", "shards"), [("safetensors", 1), ("safetensors", 3), ("bin", 1), ("bin", 2)])
def test_rows_of_every_kind_of_checkpoint(tmp_path, form, shards):
    weights = random_weights(llama_shapes())
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", weights, form=form, shards=shards))
    rows = CheckpointRows(checkpoint)
    for name in (QUERY, EMBEDDING, NORM):
        assert torch.equal(rows.read(name, slice(3, 9)), weights[name][3:9])
        picked = torch.tensor([5, 0, 0, 17])
        assert torch.equal(rows.read(name, picked), weights[name][picked])


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_file_is_opened_now_and_then_and_not_for_every_block(tmp_path, monkeypatch, form):
    weights, opened, mapped = random_weights(llama_shapes()), [], CheckpointRows._map
    rows = CheckpointRows(open_checkpoint(write_checkpoint(tmp_path / "model", weights, form=form)))
    monkeypatch.setattr(CheckpointRows, "_map", lambda self, name: opened.append(name) or mapped(self, name))
    monkeypatch.setattr(models, "MAPPED_BYTES", 20 * weights[EMBEDDING][:1].nbytes)
    monkeypatch.setattr(models, "PAGES", 1)
    blocks = [rows.read(EMBEDDING, slice(start, start + 2)) for start in range(0, 64, 2)]
    assert torch.equal(torch.cat(blocks), weights[EMBEDDING][:64]) and len(opened) == 3  # after 22 rows each
    assert torch.equal(rows.read(QUERY, slice(0, 4)), weights[QUERY][:4])
    assert torch.equal(rows.read(EMBEDDING, slice(0, 4)), weights[EMBEDDING][:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(50, 7), (50,), (6, 3, 4)])
def test_scratch_gives_back_what_was_written(tmp_path, shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    scratch = Scratch(tensor, tmp_path)
    assert torch.equal(scratch.read(slice(0, len(tensor))), tensor)
    assert torch.equal(scratch.read(slice(2, 5)), tensor[2:5])
    for rows in ([0], [5], [1, 2, 3], [3, 2, 1], [0, 0, 4, 5, 1]):
        assert torch.equal(scratch.read(torch.tensor(rows)), tensor[torch.tensor(rows)])
    assert not list(tmp_path.iterdir()), "a killed run must not leave scratch files behind"


@pytest.mark.parametrize(
    ("mask", "settings"),
    [
        (PreMask(Dare(compression_ratio=4.0), 7), ["method=dare", "compression_ratio=4"]),
        (
            PreMask(ImPart(compression_ratio=4.0, preprune_ratio=0.6, C=1.0), 7),
            ["method=impart", "compression_ratio=4", "beta=0.6", "C=1"],
        ),
        (
            PreMask(ImPart(compression_ratio=1 / (1 - 0.3), preprune_ratio=0.2, C=0.5), 7),
            [f"compression_ratio={1 / (1 - 0.3)}", "beta=0.2", "C=0.5"],
        ),
    ],
)
def test_a_mask_on_the_fly_gives_the_values_of_the_stored_delta(pair, tmp_path, called, mask, settings):
    base, tuned = open_checkpoint(pair[0]), open_checkpoint(pair[1])
    ended = called(
        sparsify.main,
        f"base_model={pair[0]}",
        f"ftm_dir={pair[1]}",
        f"save_dir={tmp_path / 'delta'}",
        "seed=7",
        "--threads",
        1,
        *settings,
    )
    assert ended.code == 0, ended.err
    torch.set_num_threads(1)
    stored = DeltaModel(open_delta(tmp_path / "delta"), base, entry("delta"), tmp_path, CPU)
    fly = CheckpointModel(tuned, base, entry(pair[1], mask), tmp_path, CPU)
    for name in open_delta(tmp_path / "delta").names():
        ours, theirs = fly.open(name), stored.open(name)
        assert ours.holds_delta and theirs.holds_delta
        rows = slice(0, base.shape(name)[0])
        assert torch.equal(ours.read(rows), theirs.read(rows))
        assert bool(ours.read(rows).any())


def test_what_lies_outside_of_the_linear_weights_is_not_masked(pair, tmp_path):
    base, tuned = open_checkpoint(pair[0]), open_checkpoint(pair[1])
    model = CheckpointModel(tuned, base, entry(pair[1], PreMask(Dare(compression_ratio=4.0), 7)), tmp_path, CPU)
    for name in (EMBEDDING, NORM, "lm_head.weight"):
        assert not model.open(name).holds_delta
        assert torch.equal(model.open(name).read(slice(0, 8)), tuned.tensor(name)[:8])


def test_a_saved_svd_can_be_masked_and_a_sparse_delta_cannot(pair, svd_delta, tmp_path, called):
    base, mask = open_checkpoint(pair[0]), PreMask(ImPart(compression_ratio=4.0, preprune_ratio=0.6, C=1.0), 7)
    from_svd = DeltaModel(open_delta(svd_delta), base, entry(svd_delta, mask), tmp_path, CPU)
    from_models = CheckpointModel(open_checkpoint(pair[1]), base, entry(pair[1], mask), tmp_path, CPU)
    rows = slice(0, base.shape(QUERY)[0])
    ours, theirs = from_svd.open(QUERY).read(rows), from_models.open(QUERY).read(rows)
    torch.testing.assert_close(ours, theirs, rtol=0.01, atol=1e-4)
    called(
        sparsify.main, f"svd_dir={svd_delta}", f"save_dir={tmp_path / 'sparse'}", "method=dare", "compression_ratio=4"
    )
    with pytest.raises(InputError, match="already is a sparse delta"):
        DeltaModel(open_delta(tmp_path / "sparse"), base, entry("sparse", mask), tmp_path, CPU)


def test_an_artifact_gives_changed_extras_and_the_base_for_the_rest(tmp_path, called):
    weights = random_weights(llama_shapes())
    tuned = tuned_weights(weights)
    tuned[EMBEDDING] = torch.cat([tuned[EMBEDDING], torch.full((1, 64), 0.5, dtype=torch.bfloat16)])
    base_path, tuned_path = write_checkpoint(tmp_path / "base", weights), write_checkpoint(tmp_path / "tuned", tuned)
    ended = called(
        sparsify.main,
        f"base_model={base_path}",
        f"ftm_dir={tuned_path}",
        f"save_dir={tmp_path / 'delta'}",
        "method=dare",
        "compression_ratio=2",
    )
    assert ended.code == 0, ended.err
    base = open_checkpoint(base_path)
    model = DeltaModel(open_delta(tmp_path / "delta"), base, entry("delta"), tmp_path, CPU)
    assert model.shape(EMBEDDING) == (101, 64) and model.dtype(EMBEDDING) == torch.bfloat16
    assert torch.equal(model.open(EMBEDDING).read(slice(99, 101)), tuned[EMBEDDING][99:])
    assert torch.equal(model.open(NORM).read(slice(0, 64)), weights[NORM])
    assert model.shape(QUERY) == (64, 64) and set(model.names()) == set(weights)


def test_models_come_in_an_order_that_their_names_do_not_decide(tmp_path):
    weights = random_weights(llama_shapes())
    base = open_checkpoint(write_checkpoint(tmp_path / "base", weights))
    paths = [write_checkpoint(tmp_path / str(seed), tuned_weights(weights, seed)) for seed in (1, 2, 3)]
    orders = []
    for names in (("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a")):
        entries = [entry(path, name=name) for name, path in zip(names, paths, strict=True)]
        orders.append([model.source for model in open_models(entries, base, tmp_path, CPU)])
    assert orders[0] == orders[1] == orders[2]
