"""serve/serve.py and serve/swap.py: what is wrong is one line, before an engine starts."""

import json
import shutil

import pytest
from manifests import edited, replace_companion

from serve import serve, swap


def refused(ended, *words: str) -> None:
    assert ended.code == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended.err
    for word in words:
        assert word in ended.err, ended.err


@pytest.fixture(autouse=True)
def never_started(monkeypatch):
    def start(overlay, flags):
        raise AssertionError("the engine was started")

    monkeypatch.setattr(serve, "start", start)


def test_deltas_that_cannot_be_served(called, tiny_deltas, tmp_path, monkeypatch):
    delta = tiny_deltas("lowrank", "code")
    refused(called(serve.main, tmp_path), "is not a delta artifact")
    refused(called(serve.main, delta, "--base", "assets/tiny/chat"), "fingerprint", "give that base")
    copy = shutil.copytree(delta, tmp_path / "copy")
    with edited(copy) as manifest:
        manifest["base"]["source"] = "nowhere/at/all"
    refused(called(serve.main, copy), "nowhere/at/all", "--base_model")
    monkeypatch.setattr(serve, "gpu_memory", lambda: [(3 * 2**20, 2**34), (2**20, 2**34)])
    refused(called(serve.main, delta), "of each of 1 devices", "device 0 has 0.0 GiB free", "--tensor-parallel-size")
    refused(called(serve.main, delta, "-tp", 2), "of each of 2 devices", "device 1")


@pytest.mark.vllm
def test_a_model_that_vllm_does_not_know(called, tiny_deltas, tmp_path):
    pytest.importorskip("vllm")
    copy = shutil.copytree(tiny_deltas("lowrank", "code"), tmp_path / "copy")
    config = json.loads((copy / "model" / "config.json").read_text())
    replace_companion(copy, "config.json", json.dumps(config | {"model_type": "nobody"}).encode())
    refused(called(serve.main, copy), "vLLM cannot run the model of", "`nobody`")


def test_servers_that_do_not_swap(called, tmp_path):
    refused(called(swap.main, tmp_path, "--url", "http://localhost:1"), "no server answers at http://localhost:1")
    refused(called(swap.main, tmp_path, "--url", "nowhere"), "no server answers at nowhere", "--url")
