"""The small files that travel with a model: of a list of kinds, plain, and from its own folder."""

import os
from pathlib import Path

import pytest

from impart import companions
from impart.companions import (
    TEMPLATES,
    companion_name,
    companions_of,
    copy_companion,
    is_plain_name,
    is_weight,
    kind_of,
)

TRAVEL = """config.json generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json
added_tokens.json vocab.json merges.txt vocab.txt tokenizer.model tokenizer.model.v3 spiece.model
sentencepiece.bpe.model qwen.tiktoken chat_template.jinja chat_template.json tool_use.jinja
preprocessor_config.json modeling_own.py LICENSE LICENSE.txt Notice USE_POLICY.md README.md""".split()
STAY = """model.safetensors model-00001-of-00002.safetensors model.safetensors.bak
model.safetensors.index.json pytorch_model.bin pytorch_model.bin.index.json training_args.bin
optimizer.pt scheduler.pt rng_state.pth rng_state_0.pth scaler.pkl last.ckpt weights.npz
rust_model.ot model.nemo model.onnx model.onnx_data tf_model.h5 flax_model.msgpack model.gguf
consolidated.00.pth license.tar.gz README.md.bak trainer_state.json all_results.json
events.out.tfevents.1 zero_to_fp32.py adapter_config.json adapter_model.bin latest notes id_rsa .env
wandb.txt tokenizer.json.tmp""".split()


def test_what_travels_and_what_stays(tmp_path):
    for name in (*TRAVEL, *STAY):
        (tmp_path / name).write_text("x")
    assert [file.name for file in companions_of(tmp_path)] == sorted(TRAVEL)
    assert all(map(kind_of, TRAVEL)) and not any(map(kind_of, STAY))
    assert not any(map(is_weight, TRAVEL))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "/a", "a\\b", "C:a", ".a", "a\nb", "a\0", "\u202eb", "x" * 300]
)
def test_names_that_are_not_plain(name):
    assert not is_plain_name(name) and kind_of(name) is None


def test_what_is_left_out_is_said_unless_it_is_a_weight(tmp_path, caplog):
    for name in ("config.json", "notes", "model.safetensors", "trainer_state.json", ".hidden"):
        (tmp_path / name).write_text("x")
    caplog.set_level("INFO")
    companions_of(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "left out of the model's small files: notes, trainer_state.json"
    ]


def test_links_are_followed_inside_of_the_folder_alone(tmp_path, caplog):
    folder, secret = tmp_path / "model", tmp_path / "secret"
    folder.mkdir()
    secret.write_text("SECRET")
    (folder / "config.json").write_text("{}")
    (folder / "README.md").symlink_to("config.json")
    (folder / "LICENSE").symlink_to(secret)
    (folder / "NOTICE").symlink_to(folder / "NOTICE")  # to itself
    (folder / "COPYING").symlink_to("/dev/zero")
    (folder / "merges.txt").symlink_to(folder / "gone")
    os.mkfifo(folder / "vocab.txt")
    (folder / "vocab.json").symlink_to(folder)
    assert [file.name for file in companions_of(folder)] == ["README.md", "config.json"]
    assert f"{folder / 'LICENSE'} is a link out of its folder" in caplog.text


def test_a_snapshot_of_the_hub_cache_links_to_its_own_blobs(tmp_path):
    models = tmp_path / "hub"
    for owner in ("models--a--b", "models--c--d"):
        (models / owner / "blobs").mkdir(parents=True)
        (models / owner / "blobs" / "1").write_text("{}")
        (models / owner / "snapshots" / "rev").mkdir(parents=True)
    snapshot = models / "models--a--b" / "snapshots" / "rev"
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "README.md").symlink_to("../../../models--c--d/blobs/1")  # another model's
    (snapshot / "LICENSE").symlink_to("../../blobs/../../models--c--d/blobs/1")
    assert [file.name for file in companions_of(snapshot)] == ["config.json"]
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    assert [file.name for file in companions_of(Path(link))] == ["config.json"]


def test_no_file_is_small_that_is_as_large_as_weights(tmp_path, monkeypatch):
    (tmp_path / "LICENSE").write_text("x" * 100)
    assert len(companions_of(tmp_path)) == 1
    monkeypatch.setattr(companions, "MAX_BYTES", 99)
    assert companions_of(tmp_path) == []


def test_further_templates_travel_in_their_folder(tmp_path):
    folder, to = tmp_path / "model", tmp_path / "to"
    (folder / TEMPLATES).mkdir(parents=True)
    to.mkdir()
    for name in ("config.json", f"{TEMPLATES}/tool_use.jinja", f"{TEMPLATES}/model.bin", f"{TEMPLATES}/notes.txt"):
        (folder / name).write_text("x")
    found = companions_of(folder)
    assert sorted(map(companion_name, found)) == [f"{TEMPLATES}/tool_use.jinja", "config.json"]
    assert sorted(copy_companion(file, to) for file in found) == [to / TEMPLATES / "tool_use.jinja", to / "config.json"]
