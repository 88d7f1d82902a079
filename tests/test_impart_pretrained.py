"""Code that a model's folder brings runs where it was asked for, and nobody is asked."""

import json
import shutil
from pathlib import Path

import pytest

from eval import tiny
from impart.pretrained import TRUST, trusted

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def untrusting(monkeypatch, tmp_path):
    monkeypatch.setenv(TRUST, "")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))


def with_code(folder: Path, file: str, auto_map: dict, **changes) -> Path:
    """A copy of a tiny model whose `file` names classes of a module that leaves a trace when it runs."""
    shutil.copytree(ROOT / "assets/tiny/math", folder)
    settings = json.loads((folder / file).read_text()) | changes | {"auto_map": auto_map}
    (folder / file).write_text(json.dumps(settings))
    (folder / "own.py").write_text(
        f"open({str(folder / 'ran')!r}, 'w')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast as Own\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    return folder


CODE = {
    "config.json": ({"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}, {"model_type": "own"}),
    "tokenizer_config.json": ({"AutoTokenizer": [None, "own.Own"]}, {"tokenizer_class": "OwnTokenizer"}),
}


@pytest.mark.parametrize("file", CODE)
def test_a_models_own_code_is_not_run(called, tmp_path, file):
    model = with_code(tmp_path / "m", file, CODE[file][0], **CODE[file][1])
    ended = called(tiny.main, model, "--tasks", "math", "--limit", 1, "--backend", "hf", "--results_dir", tmp_path)
    assert not (model / "ran").exists() and not trusted()
    if file == "config.json":
        assert ended.code == 2 and "auto_map" in ended.err and "--trust_remote_code" in ended.err
        assert ended.err.count("error: ") == 1


def test_it_runs_where_it_is_trusted(script, tmp_path):
    model = with_code(tmp_path / "m", "config.json", *CODE["config.json"][:1], **CODE["config.json"][1])
    flags = ("--tasks", "math", "--limit", 1, "--backend", "hf", "--results_dir", tmp_path, "--trust_remote_code")
    ended = script("eval/tiny.py", model, *flags)
    assert ended.code == 0, ended.err
    assert (model / "ran").exists()


def test_only_one_place_loads_what_may_bring_code(modules):
    loads = {name for name, text in modules.items() if ".from_pretrained(" in text and not name.startswith("assets/")}
    # hf.py gives decoded weights to classes of transformers' own, which bring none; the benchmark loads what it made.
    assert loads == {"impart/pretrained.py", "eval/engine/hf.py", "benchmarks/architectures.py"}
