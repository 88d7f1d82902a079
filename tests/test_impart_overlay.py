"""A base with a delta on it: the tensors of the rebuilt checkpoint, and which delta may follow which in one engine."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from manifests import edited, replace_companion
from whole_runs import merge, tensors_of

from impart.errors import InputError
from impart.overlay import difference, open_overlay

TINY = Path(__file__).resolve().parents[1] / "assets" / "tiny"


def test_its_tensors_are_those_of_the_rebuilt_checkpoint(called, tiny_deltas, tmp_path):
    delta = tiny_deltas("impart", "code")
    merge(called, delta, tmp_path / "dense")
    expected, found = tensors_of(tmp_path / "dense"), dict(open_overlay(delta).tensors())
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [name for name, _ in open_overlay(delta).tensors(wanted=lambda name: "norm" in name)] == [
        name for name in expected if "norm" in name
    ]


def test_what_it_needs(tiny_deltas):
    overlay = open_overlay(tiny_deltas("lowrank", "code"))
    parameters = 1_488_192  # of the tiny pair
    assert overlay.weight_bytes("auto") == 2 * parameters and overlay.weight_bytes("fp32") == 4 * parameters
    rank = overlay.delta.rank("model.layers.0.mlp.up_proj.weight")
    assert overlay.decode_bytes() == 4 * (2 * 512 * 192 + (512 + 192) * rank)


def test_a_delta_is_named_by_its_folder_or_by_its_model_s(tiny_deltas):
    delta = tiny_deltas("lowrank", "code")
    assert open_overlay(delta / "model").delta.path == open_overlay(str(delta)).delta.path == delta
    assert open_overlay(delta).folder == delta / "model"


def test_bases_that_do_not_do(tiny_deltas, tmp_path):
    copy = shutil.copytree(tiny_deltas("lowrank", "code"), tmp_path / "copy")
    with pytest.raises(InputError, match="is a delta of .*fingerprint.*give that base"):
        open_overlay(copy, str(TINY / "chat"))
    with edited(copy) as manifest:
        manifest["base"]["source"] = "nowhere/at/all"
    with pytest.raises(InputError, match="say where its base model is with --base_model"):
        open_overlay(copy)
    assert open_overlay(copy, str(TINY / "base")).base.source == str(TINY / "base")
    shard = copy / "layer-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match="layer-00001.safetensors .* is altered"):
        open_overlay(copy, str(TINY / "base"))


def test_deltas_that_may_follow_each_other(tiny_deltas, tmp_path):
    first = open_overlay(tiny_deltas("lowrank", "code"))
    assert difference(first, open_overlay(tiny_deltas("impart", "math"))) is None
    copy = shutil.copytree(first.delta.path, tmp_path / "copy")
    config = json.loads((copy / "model" / "config.json").read_text())
    replace_companion(copy, "config.json", json.dumps(config | {"transformers_version": "0"}).encode())
    assert difference(first, open_overlay(copy)) is None
    replace_companion(copy, "config.json", json.dumps(config | {"rms_norm_eps": 1e-5}).encode())
    assert difference(first, open_overlay(copy)) == "its config.json says something else"
    replace_companion(copy, "config.json", json.dumps(config).encode())
    replace_companion(copy, "generation_config.json", b'{"eos_token_id": 5}')
    assert difference(first, open_overlay(copy)) == "its generation_config.json says something else"


def test_a_delta_with_other_parameters_does_not_follow(svd_delta, tmp_path):
    copy = shutil.copytree(svd_delta, tmp_path / "copy")
    with edited(copy) as manifest:
        manifest["dropped"] = ["model.norm.weight"]
    assert difference(open_overlay(svd_delta), open_overlay(copy)) == "it has parameters of other names or shapes"
