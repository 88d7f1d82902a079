"""Which file of a folder is read, and what no checkpoint may hold."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import llama_shapes, random_weights, write_checkpoint

from impart.checkpoint import open_checkpoint
from impart.errors import InputError
from impart.weight_files import stale_index

NORM = "model.norm.weight"


@pytest.fixture
def weights():
    return random_weights(llama_shapes(hidden=16, intermediate=24, kv=8, vocabulary=12))


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        open_checkpoint(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("shards_left", [True, False])
def test_a_single_file_wins_over_an_index_left_from_an_earlier_save(tmp_path, weights, caplog, form, shards_left):
    old = {name: tensor - 1 for name, tensor in weights.items()}
    path = write_checkpoint(tmp_path / "m", old, form=form, shards=2)
    single = write_checkpoint(tmp_path / "single", weights, form=form)
    name = "model.safetensors" if form == "safetensors" else "pytorch_model.bin"
    shutil.copy(single / name, path / name)
    if not shards_left:
        for shard in path.glob("*-of-*"):
            shard.unlink()
    assert torch.equal(open_checkpoint(path).tensor(NORM), weights[NORM])
    assert f"{name}.index.json beside it is a leftover" in caplog.text
    assert (stale_index(path) is None) == (form == "bin") and stale_index(single) is None


def test_shards_in_safetensors_win_over_a_single_bin(tmp_path, weights):
    path = write_checkpoint(tmp_path / "m", weights, shards=2)
    torch.save({name: tensor - 1 for name, tensor in weights.items()}, path / "pytorch_model.bin")
    assert torch.equal(open_checkpoint(path).tensor(NORM), weights[NORM])


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_a_trainers_checkpoint_names_the_part_to_save(tmp_path, weights, key):
    path = write_checkpoint(tmp_path / "m", weights, form="bin")
    torch.save({key: weights, "step": torch.tensor(3), "epoch": 3}, path / "pytorch_model.bin")
    assert f"holds its tensors below {key!r}" in refused(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_names_of_a_wrapper_are_refused(tmp_path, weights, prefix, form):
    wrapped = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    path = write_checkpoint(tmp_path / "m", weights, form=form)
    other = write_checkpoint(tmp_path / "w", {**wrapped, "model.embed_tokens.weight": torch.ones(1, 16)}, form=form)
    open_checkpoint(other)  # one name without it: then it is the model's own
    if form == "bin":
        torch.save(wrapped, path / "pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(wrapped, path / "model.safetensors")
    assert f"is called {prefix}" in refused(path)


@pytest.mark.parametrize(
    "content, words",
    [
        ({}, "holds no tensors"),
        ({"a": {"b": {"c": torch.ones(1)}}}, "holds no tensors"),
        ({1: torch.zeros(3)}, "calls a tensor 1"),
        ({"x": torch.eye(4).to_sparse()}, "x is no dense array of numbers (sparse_coo"),
        ({"x": torch.zeros(3, dtype=torch.complex64)}, "no dense array"),
        ({"x": torch.empty(3, device="meta")}, "on meta"),
        ({"x": torch.zeros(1).expand(10**12)}, "repeats fewer stored values"),
    ],
)
def test_a_bin_file_holds_dense_numbers_by_name(tmp_path, weights, content, words):
    path = write_checkpoint(tmp_path / "m", weights, form="bin")
    torch.save(content, path / "pytorch_model.bin")
    assert words in refused(path)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"])
@pytest.mark.parametrize("value", ["16", [16], 1.5, {"a": 1}])
def test_a_count_in_config_json_is_a_whole_number(tmp_path, weights, key, value):
    path = write_checkpoint(tmp_path / "m", weights, config={key: value})
    assert f"{key} is" in refused(path)


def test_a_byte_order_mark_is_read_over(tmp_path, weights):
    path = write_checkpoint(tmp_path / "m", weights)
    text = json.dumps({**json.loads((path / "config.json").read_text()), "note": "\u2028 \x85"}, ensure_ascii=False)
    (path / "config.json").write_text(text, encoding="utf-8-sig")
    assert open_checkpoint(path).config["note"] == "\u2028 \x85"
