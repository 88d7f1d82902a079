"""The count of what is compressed and what travels whole: right bytes, by kind, before long work and in --info."""

import json
import logging

import pytest
import torch
from checkpoints import llama_pair, random_weights, write_checkpoint

import delta as delta_script
from impart.checkpoint import open_checkpoint
from impart.coverage import Coverage, coverage, of_checkpoint
from merge.merge import main as merge
from sparsify.sparsify import main as sparsify


def test_bytes_by_kind():
    found = coverage(
        {"model.layers.0.mlp.experts.up_proj[0]": 60, "model.layers.1.mlp.experts.up_proj[1]": 20},
        {"lm_head.weight": 20},
    )
    assert found == Coverage({"mlp.experts.up_proj": 80}, {"lm_head": 20}) and found.share == 0.2
    assert found.lines() == [
        "compressed: 80 bytes (80.0%): mlp.experts.up_proj 80",
        "travels whole: 20 bytes (20.0%): lm_head 20",
    ]
    assert "at most 5.0 times smaller" in (found.warning() or "")
    assert coverage({"a": 90}, {"b": 10}).warning() is None  # 10 % is not above 10 %
    assert coverage({}, {}).lines()[0] == "compressed: 0 bytes (100.0%): nothing"


def test_the_largest_kinds_are_named():
    line = coverage({}, {f"kind{i}": i for i in range(1, 12)}).lines()[1]
    assert line.startswith("travels whole: 66 bytes (100.0%): kind11 11, kind10 10,") and line.endswith(
        ", 3 kinds more"
    )


def test_the_headers_of_a_checkpoint_give_the_bound(tmp_path):
    weights = {"model.embed_tokens.weight": torch.zeros(10, 4), "model.layers.0.mlp.up_proj.weight": torch.zeros(8, 4)}
    model = open_checkpoint(write_checkpoint(tmp_path / "m", weights))
    found = of_checkpoint(model, ["model.layers.0.mlp.up_proj.weight"])
    assert (found.compressed, found.whole) == ({"mlp.up_proj": 128}, {"embed_tokens": 160})
    assert found.summary() == "of 288 bytes, 160 (55.6%) travel whole where they changed"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A Llama pair whose embeddings changed, norms and head did not."""
    folder = tmp_path_factory.mktemp("coverage")
    base, tuned = llama_pair(folder)
    weights = {name: open_checkpoint(tuned).tensor(name) for name in open_checkpoint(tuned).names()}
    weights["model.embed_tokens.weight"] = random_weights({"model.embed_tokens.weight": (100, 64)}, seed=9)[
        "model.embed_tokens.weight"
    ]
    weights["model.layers.0.mlp.up_proj.weight"] = open_checkpoint(base).tensor("model.layers.0.mlp.up_proj.weight")
    return base, write_checkpoint(folder / "moved", weights)


def test_svd_sparsify_merge_and_info_say_the_same_of_what_changed(pair, tmp_path, caplog, capsys):
    """One up_proj of 176 x 64 did not change: 13 matrices are compressed; of the others only the embeddings changed."""
    base, tuned = map(str, pair)
    caplog.set_level(logging.INFO)
    matrices = 2 * 2 * (64 * 64 * 2 + 32 * 64 * 2 + 176 * 64 * 3) - 2 * 176 * 64
    compressed, whole = f"compressed: {matrices:,} bytes", "travels whole: 12,800 bytes"
    delta_script.main(["--svd", "--base_model", base, "--finetuned_model", tuned, "--save_path", f"{tmp_path}/svd"])
    assert compressed in caplog.text and whole in caplog.text and "where they changed" in caplog.text
    printed = capsys.readouterr().out
    assert compressed in printed and f"{whole} (7.3%): embed_tokens 12,800" in printed
    for number, source in enumerate(([f"svd_dir={tmp_path}/svd"], [f"base_model={base}", f"ftm_dir={tuned}"])):
        caplog.clear()
        sparsify([*source, f"save_dir={tmp_path}/lowrank{number}", "method=lowrank", "compression_ratio=4"])
        assert compressed in caplog.text and whole in caplog.text
    caplog.clear()
    merge(["--merge_method=ta_1", f"--ptm_pth={base}", f"--model=one={tmp_path}/lowrank0", f"--save_pth={tmp_path}/m"])
    assert f"one: {compressed}" in caplog.text and f"one: {whole}" in caplog.text
    caplog.clear()
    masked = [
        "--merge_method=ta_1",
        f"--ptm_pth={base}",
        f"--model=one={tuned}",
        f"--save_pth={tmp_path}/n",
        "mask=dare",
        "sparsity=0.5",
    ]
    merge(masked)
    assert "one: travels whole where they changed: 26,240 bytes" in caplog.text  # embeddings, head, 5 norms of 64
    capsys.readouterr()
    delta_script.main(["--info", f"{tmp_path}/svd", "--json"])
    assert json.loads(capsys.readouterr().out)["coverage"]["whole"] == {"embed_tokens": 12800}


def test_above_a_tenth_there_is_a_warning(pair, tmp_path, caplog, capsys):
    base, tuned = map(str, pair)
    keys = [f"base_model={base}", f"ftm_dir={tuned}", f"save_dir={tmp_path}/d", "method=dare", "compression_ratio=4"]
    sparsify([*keys, "weight_types=[mlp.up_proj]"])
    warning = next(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "travel whole, so that the whole checkpoint gets at most" in warning
    delta_script.main(["--info", f"{tmp_path}/d"])
    assert "warning: " in capsys.readouterr().out
