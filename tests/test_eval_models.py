"""MODEL: a folder or a delta artifact, rebuilt once into a bounded cache that running evaluations are safe in."""

import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from manifests import edited, replace_companion

import eval.engine.models as models
from eval import gsm8k
from eval.engine.models import ModelSource, identity_of, make_room, model_name, rebuilt_folder
from impart.checkpoint import open_checkpoint
from impart.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("IMPART_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("IMPART_CACHE_GB", raising=False)
    return tmp_path / "cache" / "reconstructed"


def test_names_in_the_results():
    assert model_name("org/Model-13B") == "Model-13B"
    assert model_name("/a/b/c/") == "c"
    assert model_name("out/cr32.pt") == "cr32.pt"
    assert model_name(".") == Path.cwd().name


def test_a_checkpoint_is_used_where_it_lies(pair, cache):
    source = ModelSource(str(pair[1]))
    assert source.name == pair[1].name and source.dtype == "bf16" and source.delta_facts is None
    assert source.identity["fingerprint"] == open_checkpoint(pair[1]).fingerprint()
    assert set(source.identity) == {"fingerprint", "config", "generation_config", "tokenizer"}
    with source.folder() as folder:
        assert folder == pair[1]
    assert not cache.exists()


def test_a_delta_is_rebuilt_once(pair, svd_delta, cache):
    source = ModelSource(str(svd_delta))
    assert source.dtype == "bf16" and source.delta_facts["kind"] == "svd" and not cache.exists()
    assert source.identity != ModelSource(str(pair[1])).identity
    with source.folder() as folder:
        rebuilt, tuned = open_checkpoint(folder), open_checkpoint(pair[1])
        assert rebuilt.names() == tuned.names()
        assert all(torch.equal(rebuilt.tensor(name), tuned.tensor(name)) for name in tuned.names())
        assert (folder / "tokenizer.json").read_text() == (pair[1] / "tokenizer.json").read_text()
        written = (folder / "config.json").stat().st_mtime_ns
    with ModelSource(str(svd_delta)).folder() as again:
        assert again == folder and (again / "config.json").stat().st_mtime_ns == written
    assert [path.name for path in rebuilt_folder().iterdir() if path.is_dir()] == [folder.name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--max_model_len", 2), "the prompt of item 0 has"), (("--max_model_len", 10**6), "the model has only")],
)
def test_what_can_be_wrong_is_said_before_a_delta_is_rebuilt(called, svd_delta, cache, tmp_path, flags, message):
    data = tmp_path / "items.jsonl"
    data.write_text(json.dumps({"question": "Seven and seven?", "answer": "#### 14"}) + "\n")
    delta = shutil.copytree(svd_delta, tmp_path / "delta")  # with a tokenizer that works
    for file in ("tokenizer.json", "tokenizer_config.json"):
        replace_companion(delta, file, (Path(__file__).parents[1] / "assets" / "tiny" / "base" / file).read_bytes())
    ended = called(gsm8k.main, delta, "fp32", "--backend", "hf", "--data", data, "--results_dir", tmp_path, *flags)
    assert ended.code == 2 and message in ended.err, ended.err
    assert not cache.exists()


def test_another_delta_is_another_model(svd_delta, tmp_path):
    copy = shutil.copytree(svd_delta, tmp_path / "copy.pt")
    assert ModelSource(str(copy)).identity == ModelSource(str(svd_delta)).identity
    with edited(copy) as manifest:
        manifest["seed"] = 12345
    assert ModelSource(str(copy)).identity != ModelSource(str(svd_delta)).identity


def test_a_base_that_moved(pair, svd_delta, tmp_path):
    copy = shutil.copytree(svd_delta, tmp_path / "copy.pt")
    with edited(copy) as manifest:
        manifest["base"]["source"] = str(tmp_path / "gone")
    with pytest.raises(InputError, match="is a delta over .*gone.*say where its base model is with --base_model"):
        with ModelSource(str(copy)).folder():
            pass
    with ModelSource(str(copy), str(pair[0])).folder() as folder:
        assert open_checkpoint(folder).fingerprint() == open_checkpoint(pair[1]).fingerprint()
    with pytest.raises(InputError, match="--base_model is for delta artifacts"):
        ModelSource(str(pair[1]), str(pair[0]))


def test_the_wrong_base(pair, svd_delta):
    with pytest.raises(InputError, match="fingerprint .* give that base"):
        with ModelSource(str(svd_delta), str(pair[1])).folder():
            pass
    assert not rebuilt_folder().exists()
    with ModelSource(str(svd_delta)).folder():
        pass
    with pytest.raises(InputError, match="fingerprint .* give that base"):  # though the model is in the cache
        with ModelSource(str(svd_delta), str(pair[1])).folder():
            pass


ANSWER = {
    "config": ("config.json", "{}"),
    "generation_config": ("generation_config.json", '{"eos_token_id": 5}'),
    "tokenizer": ("tokenizer_config.json", '{"add_bos_token": false}'),
    "chat_template": ("additional_chat_templates/tool_use.jinja", "{{ messages }}"),
    "other_settings": ("preprocessor_config.json", "{}"),
}


@pytest.mark.parametrize("kind", ANSWER)
def test_what_decides_the_answers_identifies_a_checkpoint(pair, tmp_path, kind):
    copy = Path(shutil.copytree(pair[1], tmp_path / "model"))
    (copy / "README.md").write_text("about it")
    (copy / "modeling.py").write_text("it does not run")
    before = ModelSource(str(pair[1])).identity
    assert ModelSource(str(copy)).identity == before
    file = copy / ANSWER[kind][0]
    file.parent.mkdir(exist_ok=True)
    file.write_text(ANSWER[kind][1])
    after = identity_of(open_checkpoint(copy))
    assert {key for key in {*before, *after} if before.get(key) != after.get(key)} == {kind}


def test_code_identifies_a_model_where_it_may_run(pair, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(pair[1], tmp_path / "model"))
    (copy / "modeling.py").write_text("1")
    monkeypatch.setenv("IMPART_TRUST_REMOTE_CODE", "1")
    assert "code" in identity_of(open_checkpoint(copy))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_rebuilt_model_that_was_altered_is_rebuilt(svd_delta, file):
    with ModelSource(str(svd_delta)).folder() as folder:
        good = (folder / file).read_bytes()
    (folder / file).write_bytes(good[:-9] + bytes(reversed(good[-9:])))
    with ModelSource(str(svd_delta)).folder() as again:
        assert (again / file).read_bytes() == good


def test_no_such_model():
    with pytest.raises(InputError, match="no such folder, and not a hub id"):
        ModelSource("nowhere/at/all")


def test_three_at_a_time_rebuild_one_model_once(svd_delta, monkeypatch):
    """The first writes it, but not before the two others have come to the lock."""
    written, asked, real, lock = [], [], models.write_model, fcntl.flock

    def flock(file, kind):
        asked.append(kind)
        lock(file, kind)

    def patient(delta, base, path):
        written.append(path)
        while asked.count(fcntl.LOCK_EX) < 3:
            time.sleep(0.001)
        real(delta, base, path)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(models, "write_model", patient)
    folders = []

    def use():
        with ModelSource(str(svd_delta)).folder() as folder:
            folders.append(open_checkpoint(folder).fingerprint())

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1 and len(folders) == 3 and len(set(folders)) == 1


def test_an_interrupted_rebuild_is_never_taken_for_whole(svd_delta, monkeypatch, cache):
    def torn(delta, base, path):
        path.with_name(path.name + ".partial").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(models, "write_model", torn)
        with pytest.raises(KeyboardInterrupt):
            with ModelSource(str(svd_delta)).folder():
                pass
    assert not [path for path in cache.iterdir() if path.is_dir() and not path.name.endswith(".partial")]
    with ModelSource(str(svd_delta)).folder() as folder:
        assert open_checkpoint(folder).names()


def cached(cache: Path, name: str, size: int, age: float) -> Path:
    model = cache / name
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(bytes(size))
    lock = model.with_suffix(".lock")
    lock.touch()
    os.utime(lock, (time.time() - age, time.time() - age))
    return model


def test_room_is_made_by_last_use(cache, monkeypatch):
    old, middle, new = (cached(cache, name, 400, age) for name, age in (("b", 30), ("a", 20), ("c", 10)))
    monkeypatch.setenv("IMPART_CACHE_GB", "1.3e-6")  # 1300 bytes
    make_room(100, cache / "next")
    assert old.is_dir() and middle.is_dir() and new.is_dir()
    make_room(600, cache / "next")
    assert not old.exists() and not middle.exists() and new.is_dir()


def test_a_model_in_use_is_never_removed(cache, monkeypatch, caplog):
    old, new = cached(cache, "old", 400, 30), cached(cache, "new", 400, 10)
    monkeypatch.setenv("IMPART_CACHE_GB", "1e-6")
    with old.with_suffix(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        make_room(500, cache / "next")
        assert old.is_dir() and not new.exists()
        make_room(900, cache / "next")
        assert old.is_dir() and "exceeds IMPART_CACHE_GB" in caplog.text


def test_a_cache_that_cannot_hold_the_model(cache, monkeypatch):
    monkeypatch.setenv("IMPART_CACHE_GB", "0.000001")
    with pytest.raises(InputError, match="needs 0.01 GB, but the cache may have 0.00 GB; raise IMPART_CACHE_GB, or"):
        make_room(10_000_000, cache / "next")
    for wrong in ("much", "-1", "nan", "0"):
        monkeypatch.setenv("IMPART_CACHE_GB", wrong)
        with pytest.raises(InputError, match=f"IMPART_CACHE_GB={wrong} is not a positive number"):
            make_room(1, cache / "next")
