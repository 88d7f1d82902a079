"""MODEL: a checkpoint where it lies, or a delta over its base; deltas over one base share an engine."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from manifests import edited, replace_companion
from whole_runs import merge

from eval import gsm8k, tiny
from eval.engine.engine import Engine
from eval.engine.models import ModelSource, identity_of, model_name
from eval.engine.settings import EngineSettings
from impart.checkpoint import open_checkpoint
from impart.errors import InputError
from impart.overlay import Overlay, open_overlay

TINY = Path(__file__).resolve().parents[1] / "assets" / "tiny"


def test_names_in_the_results():
    assert model_name("org/Model-13B") == "Model-13B"
    assert model_name("/a/b/c/") == "c"
    assert model_name("out/cr32.pt") == "cr32.pt"
    assert model_name(".") == Path.cwd().name


def test_a_checkpoint_is_used_where_it_lies(pair):
    source = ModelSource(str(pair[1]))
    assert source.name == pair[1].name and source.dtype == "bf16" and source.delta_facts is None
    assert source.identity == identity_of(open_checkpoint(pair[1]))
    assert source.identity["fingerprint"] == open_checkpoint(pair[1]).fingerprint()
    assert source.weights() == pair[1]


def test_a_delta_is_decoded_over_its_base(pair, svd_delta):
    source = ModelSource(str(svd_delta))
    assert source.dtype == "bf16" and source.delta_facts["kind"] == "svd"
    assert source.identity != ModelSource(str(pair[1])).identity
    weights, tuned = source.weights(), open_checkpoint(pair[1])
    assert isinstance(weights, Overlay)
    found = dict(weights.tensors())
    assert list(found) == tuned.names() and all(torch.equal(found[name], tuned.tensor(name)) for name in found)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--max_model_len", 2), "the prompt of item 0 has"), (("--max_model_len", 10**6), "the model has only")],
)
def test_what_can_be_wrong_is_said_before_a_delta_is_decoded(called, svd_delta, tmp_path, monkeypatch, flags, message):
    def decoded(*_):
        raise AssertionError("the delta was decoded")

    monkeypatch.setattr(Overlay, "tensors", decoded)
    data = tmp_path / "items.jsonl"
    data.write_text(json.dumps({"question": "Seven and seven?", "answer": "#### 14"}) + "\n")
    delta = shutil.copytree(svd_delta, tmp_path / "delta")  # with a tokenizer that works
    for file in ("tokenizer.json", "tokenizer_config.json"):
        replace_companion(delta, file, (TINY / "base" / file).read_bytes())
    ended = called(gsm8k.main, delta, "fp32", "--backend", "hf", "--data", data, "--results_dir", tmp_path, *flags)
    assert ended.code == 2 and message in ended.err, ended.err


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
        ModelSource(str(copy)).weights()
    assert ModelSource(str(copy), str(pair[0])).weights().base.source == str(pair[0])
    with pytest.raises(InputError, match="--base_model is for delta artifacts"):
        ModelSource(str(pair[1]), str(pair[0]))


def test_the_wrong_base(pair, svd_delta):
    with pytest.raises(InputError, match="fingerprint .* give that base"):
        ModelSource(str(svd_delta), str(pair[1])).weights()


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


def test_no_such_model(called, tmp_path):
    with pytest.raises(InputError, match="no such folder, and not a hub id"):
        ModelSource("nowhere/at/all")
    ended = called(tiny.main, TINY / "code", "nowhere/at/all", "--backend", "hf", "--results_dir", tmp_path)
    assert ended.code == 2 and "no such folder" in ended.err and not list(tmp_path.iterdir())  # before the first model


# One engine for several deltas


def asked(called, models: list[Path], results: Path, backend: str) -> list[list[dict]]:
    """The samples of each model on 30 items of two skills."""
    flags = ("--tasks", "code,math", "--limit", 30, "--backend", backend, "--results_dir", results)
    ended = called(tiny.main, *models, "fp32", *flags)
    assert ended.code == 0, ended.err
    kept = ("id", "completion", "extracted", "correct", "tokens", "finish_reason")
    files = [results / model.name / f"tiny_{task}" / "0.jsonl" for model in models for task in ("code", "math")]
    return [[{key: json.loads(line)[key] for key in kept} for line in file.open()] for file in files]


@pytest.mark.parametrize("backend", ["hf", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])])
def test_deltas_over_one_base_answer_as_their_checkpoints_from_one_engine(
    called, tiny_deltas, tmp_path, monkeypatch, backend
):
    if backend == "vllm":
        pytest.importorskip("vllm")
    deltas = [tiny_deltas("impart", "code"), tiny_deltas("lowrank", "math"), tiny_deltas("dare", "code")]
    dense = [tmp_path / "dense" / delta.name for delta in deltas]
    for delta, checkpoint in zip(deltas, dense, strict=True):
        merge(called, delta, checkpoint)
    started, load = [], Engine._load
    monkeypatch.setattr(Engine, "_load", lambda engine: started.append(engine) or load(engine))
    swapped = asked(called, deltas, tmp_path / "swapped", backend)
    assert len(started) == 1 and not list((tmp_path / "swapped").rglob("*.safetensors"))
    assert swapped == asked(called, dense, tmp_path / "plain", backend)
    assert len(started) == 4 and any(sample["correct"] for sample in swapped[0])


def test_only_a_delta_over_the_same_base_is_swapped_in(tiny_deltas, pair, svd_delta):
    with Engine(open_overlay(tiny_deltas("lowrank", "code")), EngineSettings(backend="hf", dtype="fp32")) as engine:
        assert engine.can_swap(open_overlay(tiny_deltas("impart", "math")))
        assert not engine.can_swap(TINY / "code")
        with pytest.raises(InputError, match="does not fit the engine that is running"):
            engine.swap(open_overlay(svd_delta))
