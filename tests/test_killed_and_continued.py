"""Runs of several layers that are killed, interrupted and continued, and in several processes: the bytes of one run."""

import os
import sys
from pathlib import Path

import pytest
from checkpoints import llama_pair
from safetensors.torch import load_file
from whole_runs import ACCELERATE, TORCHRUN, files_of, killed_again_and_again, launched

import delta
from impart import sources
from sparsify import sparsify
from sparsify.methods.impart import ImPart


def svd(pair, out: Path) -> list[str]:
    """Arguments of delta.py."""
    models = ["--base_model", str(pair[0]), "--finetuned_model", str(pair[1])]
    return ["--threads", "1", "--svd", *models, "--save_path", str(out)]


def impart(pair, out: Path) -> list[str]:
    """Arguments of sparsify.py."""
    settings = ["compression_ratio=8", "preprune_ratio=0.6", "C=0.5"]
    return ["--threads", "1", f"base_model={pair[0]}", f"ftm_dir={pair[1]}", *settings, f"save_dir={out}"]


RUNS = {"delta.py": (delta.main, svd), "sparsify/sparsify.py": (sparsify.main, impart)}


@pytest.fixture(scope="module")
def deep_pair(tmp_path_factory):
    """Many layers, so that there are many moments to be killed at."""
    return llama_pair(tmp_path_factory.mktemp("deep"), hidden=96, intermediate=160, layers=12, kv=48)


def interrupt(monkeypatch, owner, name: str, call: int) -> list:
    """Ctrl-C at a call of `owner.name`, counted from 1; the arguments of all calls until then and after it."""
    real, calls = getattr(owner, name), []

    def counted(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("script", RUNS)
def test_killed_while_it_writes_and_run_again_gives_the_same_bytes(script, deep_pair, tmp_path, called, environment):
    main, arguments = RUNS[script]
    assert called(main, *arguments(deep_pair, tmp_path / "whole")).code == 0
    command = [sys.executable, script, *arguments(deep_pair, tmp_path / "killed")]
    killed_again_and_again(command, tmp_path / "killed", environment)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["killed", "whole"]


def test_a_continued_run_does_not_repeat_what_is_done(deep_pair, tmp_path, called, monkeypatch):
    calls, arguments = interrupt(monkeypatch, sources, "delta_svd", 30), svd(deep_pair, tmp_path / "d")
    ended = called(delta.main, *arguments)
    assert ended.code == 130 and "rerun the same command to continue" in ended.err
    assert called(delta.main, *arguments).code == 0
    assert len(calls) == 30 + 12 * 7 - 4 * 7  # four layers were complete


def test_another_svd_over_an_interrupted_run_is_refused(deep_pair, tmp_path, called, monkeypatch):
    interrupt(monkeypatch, sources, "delta_svd", 10)
    arguments = svd(deep_pair, tmp_path / "d")
    assert called(delta.main, *arguments).code == 130
    ended = called(delta.main, *arguments, "--dim", "8")
    assert ended.code == 2 and "settings.dim was None, is 8" in ended.err
    assert "was interrupted (d.partial is there)" in called(delta.main, "--info", tmp_path / "d").err


def test_other_settings_over_an_interrupted_run_are_refused(deep_pair, tmp_path, called, monkeypatch):
    interrupt(monkeypatch, ImPart, "encode", 30)
    arguments = impart(deep_pair, tmp_path / "out")
    assert called(sparsify.main, *arguments).code == 130
    as_lowrank = [word for word in arguments if not word.startswith(("preprune_ratio", "C="))]
    for others, words in (
        ((*arguments, "compression_ratio=16"), "settings.compression_ratio was 8.0, is 16.0"),
        ((*arguments, "seed=3"), "seed was 0, is 3"),
        ((*as_lowrank, "method=lowrank"), "method was 'impart', is 'lowrank'"),
        ((*arguments, "weight_types=[mlp.up_proj]"), "other matrices or extras"),
    ):
        ended = called(sparsify.main, *others)
        assert ended.code == 2 and words in ended.err and "--overwrite to drop it" in ended.err
    assert called(sparsify.main, *arguments).code == 0
    assert called(sparsify.main, *impart(deep_pair, tmp_path / "whole")).code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_give_the_svd_of_one(pair, svd_delta, tmp_path, environment, launcher):
    done = launched(launcher, ["delta.py", *svd(pair, tmp_path / "d"), "--dtype", "fp32"], environment)
    assert files_of(tmp_path / "d") == files_of(svd_delta)
    assert done.stdout.count("svd delta, method svd") == 1 and os.listdir(tmp_path) == ["d"]
    assert len(load_file(tmp_path / "d" / "layer-00001.safetensors")) == 21


@pytest.mark.slow
def test_two_processes_give_the_sparse_delta_of_one(pair, tmp_path, called, environment):
    others = ("save_model=true", f"log_dir={tmp_path / 'logs'}")
    done = launched(TORCHRUN, ["sparsify/sparsify.py", *impart(pair, tmp_path / "d"), *others], environment)
    assert done.stdout.count("impart at compression ratio") == 1
    assert sorted(os.listdir(tmp_path)) == ["d", "d_model", "logs"]
    assert called(sparsify.main, *impart(pair, tmp_path / "one")).code == 0
    assert files_of(tmp_path / "d") == files_of(tmp_path / "one")
