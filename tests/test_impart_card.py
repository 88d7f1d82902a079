"""Model cards, and deltas that go to a hub and are taken from it by their id."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub import Hub, hub
from whole_runs import merge as rebuild

from impart.artifact import open_delta
from impart.card import Card, hub_id_of, with_scores
from merge import merge
from serve import lora

ROOT = Path(__file__).resolve().parents[1]


def head_of(folder: Path) -> tuple[dict, str]:
    """The YAML head of a card, and the rest."""
    empty, head, text = (folder / "README.md").read_text().split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(head), text


def test_a_base_is_named_by_its_hub_id_or_not_in_the_head(tmp_path):
    cached = tmp_path / "models--meta-llama--Llama-2-13b-hf" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    assert hub_id_of(str(cached)) == hub_id_of("meta-llama/Llama-2-13b-hf") == "meta-llama/Llama-2-13b-hf"
    (tmp_path / "owner").mkdir()
    assert hub_id_of(str(tmp_path / "owner")) is None
    card = Card("name", "text", "owner/model", "adapter", ["impart"])
    head = yaml.safe_load(card.rendered().split("---\n")[1])
    expected = {"base_model": "owner/model", "base_model_relation": "adapter"}
    assert head == {**expected, "tags": ["impart", "delta-compression", "impart"]}
    merged = Card("name", "text", ["a/b", str(tmp_path), "c/d"], "merge", [])
    assert yaml.safe_load(merged.rendered().split("---\n")[1])["base_model"] == ["a/b", "c/d"]


def test_every_result_has_a_card(called, tiny_deltas, tmp_path):
    delta = tiny_deltas("lowrank", "code")
    head, text = head_of(delta)
    assert head["tags"] == ["impart", "delta-compression", "lowrank"] and "base_model" not in head
    sizes = open_delta(delta).sizes()
    assert f"| {sizes.linear:,} of {sizes.linear_dense:,} (ratio {sizes.linear_ratio:.2f}) |" in text
    assert "| assets/tiny/base |" in text and "compression_ratio=4" in text and "```bash\npython " in text
    rebuild(called, delta, tmp_path / "rebuilt")
    head, text = head_of(tmp_path / "rebuilt")
    assert head["library_name"] == "transformers" and "rebuilt from its base" in text and "lowrank" in head["tags"]
    assert called(lora.main, delta, "--out", tmp_path / "adapter", "--threads", 1).code == 0
    head, text = head_of(tmp_path / "adapter")
    assert head["library_name"] == "peft" and "lora" in head["tags"] and "embeddings and head" in text
    models = ("--ptm_pth", "assets/tiny/base", "--math_pth", "assets/tiny/math", "--code_pth", delta)
    ended = called(merge.main, "--merge_method", "ta_0.5", *models, "--save_pth", tmp_path / "merged", "--threads", 1)
    assert ended.code == 0, ended.err
    head, text = head_of(tmp_path / "merged")
    assert "merge" in head["tags"] and f"| code | {delta}, weight 1 |" in text


def test_scores_replace_scores():
    card = "---\ntags: []\n---\n\n# name\n"
    results = [{"benchmark": "gsm8k", "score": 61.234, "n": 1319, "seed": 0}]
    once = with_scores(card, results)
    assert once.startswith(card) and "| gsm8k | 61.23 | 1319 | 0 |" in once
    again = with_scores(once, [{**results[0], "score": 7.0}])
    assert "| gsm8k | 7.00 | 1319 | 0 |" in again and "61.23" not in again and again.count("## Scores") == 1
    assert with_scores(card, []) == card


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


@pytest.fixture
def online(server, environment, tmp_path):
    """Runs a script with that hub and a cache of its own."""

    def run(*words: object, token: str = "right") -> subprocess.CompletedProcess:
        variables = {"HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        variables |= {"HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "localhost"}
        command = [sys.executable, *map(str, words)]
        proxied = {name for name in os.environ if name.lower().endswith("_proxy")}
        kept = {name: value for name, value in environment.items() if name not in proxied}
        return subprocess.run(command, cwd=ROOT, env=kept | variables, capture_output=True, text=True)

    return run


def test_a_delta_goes_to_the_hub_and_is_named_by_its_id(online, server, tiny_deltas, tmp_path):
    delta = tiny_deltas("lowrank", "code")
    results = tmp_path / "results" / delta.name / "tiny_code"
    results.mkdir(parents=True)
    (results / "0.json").write_text(json.dumps({"benchmark": "tiny_code", "score": 98.5, "n": 200, "seed": 0}))
    ended = online("delta.py", "--push_to_hub", "someone/small", delta, "--results", tmp_path / "results")
    assert ended.returncode == 0 and ended.stdout == f"{server.address}/someone/small\n", ended.stderr
    held = server.files["someone/small"]
    assert held["delta.json"] == (delta / "delta.json").read_bytes() and "model/config.json" in held
    assert b"| tiny_code | 98.50 | 200 | 0 |" in held["README.md"]
    ended = online("delta.py", "--merge", "--delta_path", "someone/small", "--save_path", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    asked = ("--tasks", "code", "--limit", 5, "--backend", "hf", "--results_dir", tmp_path / "scores")
    ended = online("eval/tiny.py", "someone/small", "fp32", *asked)
    assert ended.returncode == 0 and ended.stdout.startswith("tiny_code  small  "), ended.stderr
    ended = online("delta.py", "--info", "someone/nothing")
    assert ended.returncode == 2 and "'someone/nothing' is not a delta artifact" in ended.stderr


def test_a_hub_that_does_not_know_us(online, tiny_deltas, tmp_path):
    delta = tiny_deltas("lowrank", "code")
    for token in ("wrong", ""):
        ended = online("delta.py", "--push_to_hub", "someone/other", delta, token=token)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1, ended.stderr
        assert "the hub does not take someone/other" in ended.stderr and "HF_TOKEN" in ended.stderr
    ended = online("delta.py", "--push_to_hub", "nowhere", delta)
    assert ended.returncode == 2 and "'nowhere' is not of the form owner/name" in ended.stderr
    ended = online("delta.py", "--push_to_hub", "someone/other", tmp_path)
    assert ended.returncode == 2 and "has no README.md; name a delta, model or adapter" in ended.stderr
