"""The checkpoint writer: what it writes, whole or not at all, and what it refuses."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from checkpoints import SMALL, random_weights, small_model, write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file

from impart.checkpoint import open_checkpoint
from impart.checkpoint_writer import CheckpointWriter
from impart.errors import InputError
from impart.outputs import MARKER, refuse_existing
from impart.weight_files import TensorSpec, tensor_bytes


@pytest.fixture(scope="module")
def weights():
    return random_weights(SMALL)


def plan_of(tensors):
    return [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]


def write(path, tensors, companions=(), **options):
    writer = CheckpointWriter(path, plan_of(tensors), **options)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish(companions)
    return path


def test_what_is_written_reads_back_and_loads_in_transformers(tmp_path):
    import transformers

    model = small_model("Llama").to(torch.bfloat16).eval()
    model.save_pretrained(tmp_path / "source")
    source = open_checkpoint(tmp_path / "source")
    tensors = {name: source.tensor(name) for name in source.names()}
    path = write(tmp_path / "out", tensors, source.companions(), shard_bytes=2000)
    assert len(list(path.glob("model-*-of-*.safetensors"))) > 3
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    assert loaded.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    tokens = torch.arange(10)[None]
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_one_shard_needs_no_index_and_equals_what_safetensors_reads(tmp_path, weights):
    path = write(tmp_path / "out", weights)
    assert open_files(path) == ["model.safetensors"]
    loaded = load_file(path / "model.safetensors")
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)
    with safe_open(path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_every_dtype_and_odd_shapes_are_written_exactly(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.tensor([1, 2, 3], dtype=torch.uint8),
        "b": torch.randn(3, generator=generator),
        "c": torch.tensor(2.5),
        "d": torch.empty(0, 4),
        "e": torch.tensor([True, False, True]),
        "f": torch.randn(5, 1, generator=generator).bfloat16(),
        "g": torch.randn(2, generator=generator).double(),
        "h": torch.arange(3, dtype=torch.int64),
        "i": torch.randn(3, generator=generator).to(torch.float8_e4m3fn),
        "j": torch.randn(3, 5, generator=generator).half().T,
    }
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(write(tmp_path / "out", tensors, [tmp_path / "config.json"]))
    for name, tensor in tensors.items():
        found = checkpoint.tensor(name)
        assert found.dtype == tensor.dtype and found.shape == tensor.shape
        assert bytes(tensor_bytes(found)) == bytes(tensor_bytes(tensor))


@pytest.mark.parametrize("shard_bytes, count", [(10**9, 1), (600, None), (1, None)])
def test_shards_are_filled_in_order_and_indexed(tmp_path, weights, shard_bytes, count):
    path = write(tmp_path / "out", weights, shard_bytes=shard_bytes)
    if count == 1:
        return
    index = json.loads((path / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(file.name for file in path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    for file in files:
        held = load_file(path / file)
        assert all(index["weight_map"][name] == file for name in held)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= shard_bytes


def test_bytes_do_not_depend_on_the_order_in_which_tensors_come(tmp_path, weights):
    first = write(tmp_path / "a", weights, shard_bytes=3000)
    writer = CheckpointWriter(tmp_path / "b", plan_of(weights), shard_bytes=3000)
    for name in reversed(weights):
        writer.add(name, weights[name])
    writer.finish()
    for file in first.iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_tensors_go_to_disk_as_they_are_added(tmp_path, weights):
    writer = CheckpointWriter(tmp_path / "out", plan_of(weights))
    name = "model.layers.0.mlp.up_proj.weight"
    writer.add(name, weights[name])
    assert bytes(tensor_bytes(weights[name])) in (tmp_path / "out.partial" / "model.safetensors").read_bytes()
    assert not (tmp_path / "out").exists()


def test_an_interrupted_writer_shows_nothing_and_the_next_one_is_not_disturbed(tmp_path, weights):
    writer = CheckpointWriter(tmp_path / "out", plan_of(weights), shard_bytes=600)
    for name in list(weights)[:5]:
        writer.add(name, weights[name])
    with pytest.raises(ValueError, match="never added"):
        writer.finish()
    assert not (tmp_path / "out").exists()
    del writer
    assert open_files(write(tmp_path / "out", weights)) == ["model.safetensors"]
    assert os.listdir(tmp_path) == ["out"]


def open_files(path):
    """Names of the files that a user sees; the mark that this suite made the folder is hidden."""
    return sorted(name for name in os.listdir(path) if name != MARKER)


def test_nothing_is_replaced_without_overwrite_and_the_old_stays_until_the_new_is_whole(tmp_path, weights):
    write(tmp_path / "out", weights)
    with pytest.raises(InputError, match="exists; name another folder, or add --overwrite"):
        CheckpointWriter(tmp_path / "out", plan_of(weights))
    newer = {name: tensor + 1 for name, tensor in weights.items()}
    writer = CheckpointWriter(tmp_path / "out", plan_of(newer), overwrite=True)
    for name, tensor in newer.items():
        writer.add(name, tensor)
        assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name], weights[name])
    writer.finish()
    assert torch.equal(
        load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"], newer["model.norm.weight"]
    )
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_this_suite_did_not_make_is_never_replaced(tmp_path, weights):
    path = write_checkpoint(tmp_path / "model", weights, shards=2)
    with pytest.raises(InputError, match="which this suite did not make"):
        CheckpointWriter(path, plan_of(weights), overwrite=True)
    assert torch.equal(open_checkpoint(path).tensor("model.norm.weight"), weights["model.norm.weight"])


def test_a_users_folder_under_the_partial_name_is_kept(tmp_path, weights):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something else; move it away"):
        CheckpointWriter(tmp_path / "out", plan_of(weights))
    assert (tmp_path / "out.partial" / "thesis.tex").read_text() == "years of work"


def test_tensors_that_were_not_planned_are_refused(tmp_path, weights):
    writer = CheckpointWriter(tmp_path / "out", plan_of(weights))
    with pytest.raises(ValueError, match="planned"):
        writer.add("model.norm.weight", torch.ones(3))
    with pytest.raises(ValueError, match="planned"):
        writer.add("model.norm.weight", weights["model.norm.weight"].float())
    with pytest.raises(KeyError):
        writer.add("more", torch.ones(3))


def test_the_disk_is_asked_before_anything_is_written(tmp_path, weights, monkeypatch):
    total = sum(tensor.nbytes for tensor in weights.values())
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, total - 1))
    with pytest.raises(InputError, match="the checkpoint needs .* GB at '.*out', but the disk has"):
        CheckpointWriter(tmp_path / "out", plan_of(weights))
    assert os.listdir(tmp_path) == []


def test_what_a_killed_run_left_does_not_count_against_the_disk(tmp_path, weights, monkeypatch):
    CheckpointWriter(tmp_path / "out", plan_of(weights))
    usage, seen = namedtuple("Usage", "total used free"), []

    def free(path):
        seen.append((tmp_path / "out.partial").exists())
        return usage(10**9, 0, 10**9)

    monkeypatch.setattr(shutil, "disk_usage", free)
    CheckpointWriter(tmp_path / "out", plan_of(weights))
    assert seen == [False]


def test_places_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder that you may write to"):
        refuse_existing(tmp_path / "file" / "deeper" / "out", overwrite=False)
    with pytest.raises(InputError, match="exists; name another folder"):
        refuse_existing(tmp_path, overwrite=False)
    for path in (Path(), Path("..")):
        with pytest.raises(InputError, match="no name for a new folder"):
            refuse_existing(path, overwrite=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="may write to"):
        refuse_existing(tmp_path / "out", overwrite=False)
    assert os.listdir(tmp_path) == ["file"]


def test_a_home_folder_in_the_path_is_meant(tmp_path, weights, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(Path("~/out"), weights)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    with pytest.raises(InputError, match="exists"):
        refuse_existing(Path("~/out"), overwrite=False)
