"""The delta artifact: what is read is what was written, a killed run continues, nothing damaged is taken for whole."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from checkpoints import llama_shapes, random_weights, tuned_weights, write_checkpoint
from safetensors import safe_open

from impart import outputs
from impart.architecture import linear_names
from impart.artifact import MANIFEST, is_delta, open_delta
from impart.artifact_writer import PROGRESS, DeltaWriter, model_facts
from impart.checkpoint import open_checkpoint
from impart.encodings import empty, svd
from impart.errors import InputError
from impart.report import Report

EXTRAS = {"model.layers.1.input_layernorm.weight": torch.arange(16.0), "lm_head.weight": torch.ones(5, 16).half()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    base = random_weights(llama_shapes(hidden=16, intermediate=24, layers=3, kv=8, vocabulary=20))
    return (
        open_checkpoint(write_checkpoint(folder / "base", base)),
        open_checkpoint(write_checkpoint(folder / "tuned", tuned_weights(base))),
    )


class Run:
    """One run of a made-up method, which keeps the leading two columns and rows of the fine-tuned weights."""

    def __init__(
        self, models, path: Path, *, settings=None, names=None, extras=EXTRAS, overwrite=False, needed_bytes=0
    ):
        self.base, self.tuned = models
        self.extras = extras
        names = linear_names(self.tuned) if names is None else names
        self.writer = DeltaWriter(
            path,
            {
                "kind": "svd",
                "method": "svd",
                "settings": settings or {"dim": None, "compression_ratio": 4},
                "seed": 3,
                "base": model_facts(self.base),
                "finetuned": model_facts(self.tuned),
            },
            dtypes={name: self.tuned.dtype(name) for name in names},
            extras=list(extras),
            dropped=["gone.weight"],
            needed_bytes=needed_bytes,
            overwrite=overwrite,
        )

    def encode(self, name):
        if name.endswith("k_proj.weight"):
            return empty.write(self.tuned.shape(name))
        x = self.tuned.tensor(name).float()
        return svd.write(x[:, :2], torch.tensor([2.0, 1.0]), x[:2].T, torch.float16)

    def write(self, shards):
        for shard in shards:
            self.writer.write(
                shard,
                {name: self.encode(name) for name in shard.matrices},
                {name: self.extras[name] for name in shard.extras},
                [{"name": name} for name in shard.matrices],
            )

    def whole(self):
        self.write(self.writer.pending())
        return self.writer.finish(self.tuned.companions(), Report({"a": 1}))


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    return Run(models, tmp_path_factory.mktemp("finished") / "delta.pt").whole()


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished artifact that a test may damage."""
    return Path(shutil.copytree(finished.path, tmp_path / "delta"))


def files_of(folder: Path, but=("report.json", "README.md")) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in but
    }


def refused(call, *arguments) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Reading


def test_what_was_written_is_read(models, finished):
    base, tuned = models
    delta = open_delta(finished.path)
    assert is_delta(finished.path) and delta.names() == linear_names(tuned) and len(delta.names()) == 21
    for name in delta.names():
        x = tuned.tensor(name).float().half().float()
        expected = x[:, :2] * torch.tensor([2.0, 1.0]) @ x[:2]
        if "k_proj" in name:
            expected = torch.zeros(tuned.shape(name))
        assert delta.shape(name) == tuned.shape(name) and delta.dtype(name) == torch.bfloat16
        assert torch.allclose(delta.reconstruct(name), expected, atol=1e-6)
        assert delta.rank(name) == (0 if "k_proj" in name else 2)
    assert delta.extras() == [*EXTRAS] and all(torch.equal(delta.extra(name), EXTRAS[name]) for name in EXTRAS)
    assert delta.extra("lm_head.weight").dtype == torch.float16
    assert [file.name for file in delta.companions()] == ["config.json", "generation_config.json", "tokenizer.json"]
    assert delta.companions()[0].read_bytes() == (tuned.path / "config.json").read_bytes()
    delta.verify()
    delta.check_base(base)
    delta.check_finetuned(tuned)


def test_reconstruction_comes_in_the_dtype_that_is_asked_for(finished):
    name = finished.names()[0]
    whole = finished.reconstruct(name)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(finished.reconstruct(name, dtype=dtype), whole.to(dtype))
    empty_name = next(name for name in finished.names() if "k_proj" in name)
    assert finished.reconstruct(empty_name, dtype=torch.float16).dtype == torch.float16


def test_factors_and_stored_tensors(finished):
    name = finished.names()[0]
    U, s, V = finished.factors(name)
    assert U.dtype == s.dtype == V.dtype == torch.float32 and s.tolist() == [2.0, 1.0]
    assert torch.equal((U * s) @ V.T, finished.reconstruct(name))
    stored = finished.stored(name)
    assert (
        stored.encoding == "svd"
        and list(stored.tensors) == ["U", "s", "V"]
        and stored.tensors["U"].dtype == torch.float16
    )
    assert stored.facts["kept"] == [2 * stored.shape[0], 2 * stored.shape[1]]


def test_the_manifest_says_what_decided_the_bytes(models, finished):
    manifest = json.loads((finished.path / MANIFEST).read_text())
    assert manifest == finished.manifest
    assert manifest["format"] == "impart-delta" and manifest["version"] == 2 and manifest["seed"] == 3
    assert manifest["base"] == {
        "source": models[0].source,
        "fingerprint": models[0].fingerprint(),
        "bytes": sum(models[0].spec(name).nbytes for name in models[0].names()),
    }
    assert manifest["dropped"] == ["gone.weight"] and manifest["settings"] == {"dim": None, "compression_ratio": 4}
    assert {"torch", "numpy", "python"} <= set(manifest["versions"])


def test_one_shard_per_layer_and_one_for_the_rest(finished):
    assert list(finished.manifest["shards"]) == [
        "layer-00000.safetensors",
        "layer-00001.safetensors",
        "layer-00002.safetensors",
        "rest.safetensors",
    ]
    assert set(os.listdir(finished.path)) == {
        MANIFEST,
        *finished.manifest["shards"],
        "model",
        "report.json",
        "README.md",
    }
    with safe_open(finished.path / "layer-00001.safetensors", "pt") as shard:
        assert {name.split(".")[2] for name in shard.keys()} == {"1"}
    with safe_open(finished.path / "rest.safetensors", "pt") as shard:
        assert list(shard.keys()) == ["lm_head.weight"]


def test_sizes_are_counted_from_the_files(models, finished):
    sizes = finished.sizes()
    assert sizes.total == sum(
        len(data) for name, data in files_of(finished.path).items() if not name.startswith("model/")
    )
    assert sizes.extras == 16 * 4 + 5 * 16 * 2
    assert sizes.linear_dense == sum(2 * m * n for m, n in map(finished.shape, finished.names()))
    kept = sum(2 * (m + n) for name in finished.names() if "k_proj" not in name for m, n in [finished.shape(name)])
    assert sizes.values == 2 * kept
    assert sizes.linear_ratio == sizes.linear_dense / sizes.linear
    assert sizes.checkpoint == finished.manifest["finetuned"]["bytes"]


def test_files_have_the_users_mode(finished):
    modes = {file.stat().st_mode & 0o777 for file in finished.path.rglob("*") if file.is_file()}
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {0o666 & ~mask}


def test_the_report_has_every_row_in_order(finished):
    report = json.loads((finished.path / "report.json").read_text())
    assert [row["name"] for row in report["matrices"]] == finished.names() and report["settings"] == {"a": 1}


# What is refused


def test_a_folder_that_is_no_delta(tmp_path):
    (tmp_path / "folder").mkdir()
    for path, lack in ((tmp_path / "folder", "no delta.json"), (tmp_path / "none", "no such folder")):
        message = refused(open_delta, path)
        assert f"is not a delta artifact ({lack})" in message and "delta.py --svd" in message
    assert not is_delta(tmp_path / "folder")


def test_an_unfinished_run_is_named(models, tmp_path):
    run = Run(models, tmp_path / "out")
    run.write(run.writer.pending()[:2])
    message = refused(open_delta, tmp_path / "out")
    assert "was interrupted (out.partial is there): run it again to continue" in message


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"format": "impart-delta", "vers', "is not valid JSON"),
        ('"text"', "has format None"),
        ("[]", "has format None"),
        ('{"format": "gguf"}', "has format 'gguf', not 'impart-delta'"),
        (
            '{"format": "impart-delta", "version": 3}',
            "has format version 3, and this software reads up to 2; update it",
        ),
        ('{"format": "impart-delta", "version": 1}', "told base models apart by samples"),
    ],
)
def test_a_manifest_that_is_damaged_foreign_or_newer(copy, content, words):
    (copy / MANIFEST).write_text(content)
    assert words in refused(open_delta, copy)


def test_an_altered_shard_is_named_before_its_values_are_used(copy):
    shard = copy / "layer-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # one bit
    shard.write_bytes(data)
    delta = open_delta(copy)
    for call in (
        lambda: delta.reconstruct("model.layers.1.self_attn.q_proj.weight"),
        delta.verify,
        lambda: delta.extra("model.layers.1.input_layernorm.weight"),
    ):
        message = refused(call)
        assert "shard layer-00001.safetensors of delta" in message and "altered or truncated" in message
    assert delta.reconstruct("model.layers.0.self_attn.q_proj.weight").shape == (16, 16)


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_truncated_shard_is_named(copy, size):
    shard = copy / "rest.safetensors"
    shard.write_bytes(shard.read_bytes()[:size])
    message = refused(open_delta, copy)
    assert "shard rest.safetensors of delta" in message and "altered or truncated" in message


def test_a_missing_shard_is_named(copy):
    (copy / "layer-00002.safetensors").unlink()
    message = refused(open_delta, copy)
    assert "shard layer-00002.safetensors of delta" in message and "is missing" in message


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text("{}")])
def test_an_altered_companion_is_named(copy, damage):
    damage(copy / "model" / "config.json")
    message = refused(open_delta(copy).verify)
    assert "config.json is missing or altered" in message


def test_another_base_or_fine_tuned_model_is_named_with_both_fingerprints(models, finished):
    base, tuned = models
    message = refused(finished.check_base, tuned)
    assert base.source in message and tuned.source in message
    assert base.fingerprint()[:12] in message and tuned.fingerprint()[:12] in message
    message = refused(finished.check_finetuned, base)
    assert base.fingerprint()[:12] in message and tuned.fingerprint()[:12] in message


def test_names_that_are_not_there(finished):
    for call in (finished.shape, finished.reconstruct, finished.rank):
        assert "holds no matrix 'model.norm.weight'" in refused(call, "model.norm.weight")


# Writing and continuing


def test_a_run_that_stopped_continues_with_what_is_missing(models, finished, tmp_path):
    run = Run(models, tmp_path / "out")
    assert len(run.writer.pending()) == 4
    run.write(run.writer.pending()[:2])
    assert not (tmp_path / "out").exists()
    del run
    again = Run(models, tmp_path / "out")
    assert [shard.file for shard in again.writer.pending()] == ["layer-00002.safetensors", "rest.safetensors"]
    again.whole()
    assert files_of(tmp_path / "out") == files_of(finished.path)
    assert os.listdir(tmp_path) == ["out"]


def test_shards_that_a_crash_damaged_or_did_not_record_are_made_again(models, finished, tmp_path):
    run = Run(models, tmp_path / "out")
    run.write(run.writer.pending())
    partial = tmp_path / "out.partial"
    (partial / PROGRESS / "layer-00000.safetensors.json").unlink()  # killed between the shard and its record
    (partial / "layer-00001.safetensors").write_bytes(b"")
    (partial / "layer-00002.safetensors").unlink()
    (partial / PROGRESS / "rest.safetensors.tmp").write_bytes(b"half")
    again = Run(models, tmp_path / "out")
    assert [shard.file for shard in again.writer.pending()] == [f"layer-0000{layer}.safetensors" for layer in range(3)]
    again.whole()
    assert files_of(tmp_path / "out") == files_of(finished.path)


@pytest.mark.parametrize("file", [".delta.json.123.tmp", ".report.json.9.tmp"])
def test_temporary_files_of_a_killed_run_do_not_stay(models, finished, tmp_path, file):
    run = Run(models, tmp_path / "out")
    run.write(run.writer.pending()[:1])
    (tmp_path / "out.partial" / file).write_text("half")
    Run(models, tmp_path / "out").whole()
    assert files_of(tmp_path / "out") == files_of(finished.path)


@pytest.mark.parametrize("at", ["before the records go", "half of the records", "after the records are gone"])
def test_a_run_killed_at_the_very_end_still_gives_the_same_folder(models, finished, tmp_path, monkeypatch, at):
    import impart.artifact_writer as module

    def killed(*_):
        raise KeyboardInterrupt

    if at == "before the records go":
        monkeypatch.setattr(module.shutil, "rmtree", killed)
    elif at == "after the records are gone":
        monkeypatch.setattr(outputs, "replace_folder", killed)
    else:
        monkeypatch.setattr(module.shutil, "rmtree", lambda folder: ((folder / "run.json").unlink(), killed()))
    with pytest.raises(KeyboardInterrupt):
        Run(models, tmp_path / "out").whole()
    monkeypatch.undo()
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial" / MANIFEST).exists()
    Run(models, tmp_path / "out").whole()
    assert files_of(tmp_path / "out") == files_of(finished.path) and os.listdir(tmp_path) == ["out"]


def test_an_interrupted_run_with_other_settings_is_not_mixed_in(models, tmp_path):
    run = Run(models, tmp_path / "out")
    run.write(run.writer.pending()[:1])
    before = files_of(tmp_path, but=("report.json", ".out.lock"))
    message = refused(lambda: Run(models, tmp_path / "out", settings={"dim": 7, "compression_ratio": 4}))
    assert "holds an interrupted run with other settings (settings.dim was None, is 7)" in message
    assert "--overwrite" in message and files_of(tmp_path, but=("report.json", ".out.lock")) == before
    replaced = Run(models, tmp_path / "out", settings={"dim": 7, "compression_ratio": 4}, overwrite=True)
    assert len(replaced.writer.pending()) == 4
    assert replaced.whole().manifest["settings"]["dim"] == 7


def test_an_interrupted_run_over_other_matrices_or_extras_is_not_mixed_in(models, tmp_path):
    run = Run(models, tmp_path / "out")
    run.write(run.writer.pending()[:1])
    fewer = linear_names(models[1])[1:]
    assert "(other matrices or extras)" in refused(lambda: Run(models, tmp_path / "out", names=fewer))
    assert "(other matrices or extras)" in refused(lambda: Run(models, tmp_path / "out", extras={}))
    assert len(Run(models, tmp_path / "out").writer.pending()) == 3


def test_an_interrupted_run_of_other_models_is_not_mixed_in(models, tmp_path):
    run = Run(models, tmp_path / "out")
    run.write(run.writer.pending()[:1])
    assert "base." in refused(lambda: Run(models[::-1], tmp_path / "out"))


def test_a_folder_of_the_user_under_the_partial_name_is_not_removed(models, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        message = refused(lambda o=overwrite: Run(models, tmp_path / "out", overwrite=o))
        assert "holds something else; move it away" in message
    assert (tmp_path / "out.partial" / "notes.txt").read_text() == "mine"


def test_nothing_finished_is_replaced_without_overwrite(models, copy):
    before = files_of(copy)
    assert "exists; name another folder, or add --overwrite" in refused(lambda: Run(models, copy))
    run = Run(models, copy, settings={"dim": 1, "compression_ratio": 4}, overwrite=True)
    run.write(run.writer.pending())
    assert files_of(copy) == before
    run.writer.finish([], Report({}))
    assert open_delta(copy).manifest["settings"]["dim"] == 1 and open_delta(copy).companions() == []


def test_the_disk_is_asked_first_and_what_is_done_counts(models, tmp_path, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**9))
    message = refused(lambda: Run(models, tmp_path / "out", needed_bytes=2 * 10**9))
    assert "the delta needs 2.00 GB at" in message and "1.00 GB free" in message
    assert os.listdir(tmp_path) == []
    run = Run(models, tmp_path / "out", needed_bytes=10**9)
    run.write(run.writer.pending())
    done = sum(file.stat().st_size for file in (tmp_path / "out.partial").rglob("*") if file.is_file())
    Run(models, tmp_path / "out", needed_bytes=10**9 + done // 2)


def test_written_shards_can_be_read_back_before_the_end(models, tmp_path):
    run = Run(models, tmp_path / "out")
    shard = run.writer.pending()[1]
    run.write([shard])
    held = run.writer.written(shard)
    assert list(held) == list(shard.matrices)
    for name, encoded in held.items():
        expected = run.encode(name)
        assert encoded.encoding == expected.encoding and encoded.shape == expected.shape
        assert all(torch.equal(encoded.tensors[key], expected.tensors[key]) for key in expected.tensors)
