"""Fingerprints are remembered for as long as the file is the same, and never for longer."""

import json
import os
import time
from pathlib import Path

import pytest
from checkpoints import llama_shapes, random_weights, write_checkpoint

from impart.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("IMPART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fingerprints"


@pytest.fixture
def model(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "model", random_weights(llama_shapes()), shards=2)


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The tensors whose values were read for a digest."""
    names, real = [], Checkpoint.digest
    monkeypatch.setattr(Checkpoint, "digest", lambda self, name: names.append(name) or real(self, name))
    return names


def settle() -> None:
    """Lets the clock go on, so that the files count as unchanged since long ago."""
    time.sleep(0.15)


def test_a_settled_file_is_read_once(model, cache, hashed):
    settle()
    first = open_checkpoint(model).fingerprint()
    assert len(hashed) == len(open_checkpoint(model).names()) and len(list(cache.iterdir())) == 2
    hashed.clear()
    assert open_checkpoint(model).fingerprint() == first and not hashed
    hashed.clear()
    link = model.parent / "link"
    link.symlink_to(model)
    assert open_checkpoint(link).fingerprint() == first and not hashed


def test_a_change_of_one_byte_is_seen_though_size_and_time_stay(model, cache):
    settle()
    first = open_checkpoint(model).fingerprint()
    file = model / "model-00001-of-00002.safetensors"
    status = file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert open_checkpoint(model).fingerprint() != first


def test_a_file_just_written_is_not_remembered(model, cache):
    for file in model.glob("*.safetensors"):
        os.utime(file)
    open_checkpoint(model).fingerprint()
    assert not cache.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"state": 1, "tensors": []}', "\xff"])
def test_a_broken_memory_is_none(model, cache, text):
    settle()
    first = open_checkpoint(model).fingerprint()
    for file in cache.iterdir():
        file.write_bytes(text.encode("latin-1"))
    assert open_checkpoint(model).fingerprint() == first
    assert all(json.loads(file.read_text())["tensors"] for file in cache.iterdir())


def test_a_cache_that_cannot_be_written_costs_time_alone(model, tmp_path, monkeypatch):
    settle()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMPART_CACHE", str(tmp_path / "file"))
    assert len(open_checkpoint(model).fingerprint()) == 64


def test_a_user_without_a_home_has_fingerprints(model, monkeypatch):
    settle()
    monkeypatch.delenv("IMPART_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(Checkpoint(model, "model").fingerprint()) == 64


def test_who_has_read_a_tensor_whole_has_its_digest(model, hashed, monkeypatch, cache):
    checkpoint, name = open_checkpoint(model), "lm_head.weight"
    list(checkpoint.blocks(name))
    monkeypatch.setattr(Checkpoint, "_pieces", None)
    assert checkpoint.digest(name)
