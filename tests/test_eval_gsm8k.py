"""GSM8K as a user runs it: the shell script, an interrupted run, scoring anew, and wrong input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import eval.gsm8k as gsm8k
from eval.run.results import read_lines

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "assets" / "tiny" / "code"
ITEMS = [
    {"question": "Tom has 3 pens and buys 4. How many pens?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    {"question": "Ann has 1,200 cups and breaks 200. How many cups?", "answer": "1,200 - 200 = 1,000\n#### 1,000"},
    {"question": "Ben owes 5 and pays 8. How far below zero is he?", "answer": "#### -3"},
]
COMPLETIONS = ["3 + 4 = 7. The answer is: 7.", "The answer is $1,000.", "First 8 - 5 = 3. The answer is: 4"]


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "gsm8k_test.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return path


def flags(data: Path, *more: object) -> list[object]:
    return [
        MODEL,
        "fp32",
        "--data",
        data,
        "--backend",
        "hf",
        "--max_model_len",
        256,
        "--results_dir",
        data.parent / "results",
        *more,
    ]


def result(data: Path, name: str = "code") -> dict:
    return json.loads((data.parent / "results" / name / "gsm8k" / "0.json").read_text())


def test_the_shell_script_from_another_folder(data, environment, tmp_path):
    environment = environment | {"PYTHON": sys.executable}
    ended = subprocess.run(
        ["bash", str(ROOT / "eval/scripts/gsm8k.sh"), *map(str, flags(data))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert (
        ended.stdout.startswith("gsm8k  code  0.00 (95 % interval 0.00-56.15)  (n = 3)  ")
        and ended.stdout.count("\n") == 1
    )
    written = result(data)
    assert written["settings"]["template"] == "wizardmath" and written["settings"]["max_tokens"] == 1024
    assert written["settings"]["stop"] == ["Instruction:", "Instruction", "Response:", "Response"]
    assert (written["model"], written["benchmark"], written["n"], written["seed"]) == ("code", "gsm8k", 3, 0)
    samples = read_lines(data.parent / "results" / "code" / "gsm8k" / "0.jsonl")
    assert samples[1]["prompt"] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{ITEMS[1]['question']}\n\n### Response: Let's think step by step."
    )
    assert [sample["gold"] for sample in samples] == [7, 1000, -3]
    assert set(samples[0]) >= {"id", "prompt", "completion", "extracted", "gold", "correct"}


def test_the_shell_script_without_a_model(environment):
    for name in ("gsm8k", "math", "tiny"):
        ended = subprocess.run(
            ["bash", str(ROOT / f"eval/scripts/{name}.sh")], env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 2 and ended.stderr.startswith("error: MODEL is missing; usage: bash eval/scripts/")


def test_an_interrupted_run_continues_and_a_finished_one_is_left_alone(called, data, caplog):
    caplog.set_level("INFO")
    assert called(gsm8k.main, *flags(data)).code == 0
    folder = data.parent / "results" / "code" / "gsm8k"
    samples, whole = read_lines(folder / "0.jsonl"), result(data)
    # As after a kill during the second item: the first is there, a line is torn, no result.
    header = {**whole["settings"], "versions": whole["versions"]}
    part = [header, {"id": "0", "text": "kept from before", "tokens": 3, "finish_reason": "stop", "seconds": 9.0}]
    (folder / "0.part.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part) + '{"id": "1", "te')
    (folder / "0.json").unlink()
    (folder / "0.jsonl").unlink()
    assert called(gsm8k.main, *flags(data)).code == 0
    resumed = read_lines(folder / "0.jsonl")
    assert resumed[0]["completion"] == "kept from before"
    assert resumed[1:] == samples[1:] and "continuing an interrupted run: 1 completions are there" in caplog.text
    assert result(data)["seconds"] > 9.0 and not (folder / "0.part.jsonl").exists()

    stamp = (folder / "0.json").stat().st_mtime_ns
    ended = called(gsm8k.main, *flags(data))
    assert ended.code == 0 and "already done" in caplog.text and ended.out.startswith("gsm8k  code  0.00")
    assert (folder / "0.json").stat().st_mtime_ns == stamp
    assert called(gsm8k.main, *flags(data, "--overwrite")).code == 0
    assert read_lines(folder / "0.jsonl") == samples


def test_another_configuration_is_an_error(called, data):
    assert called(gsm8k.main, *flags(data)).code == 0
    ended = called(gsm8k.main, *flags(data, "--limit", 2))
    assert ended.code == 2 and "n is 3 there and 2 now" in ended.err and "--overwrite" in ended.err
    ended = called(gsm8k.main, *flags(data, "--scoring", "release"))
    assert ended.code == 2 and "scoring is 'paper' there and 'release' now" in ended.err and "--rescore" in ended.err
    ended = called(gsm8k.main, *flags(data, "--chat_template", "none"))
    assert ended.code == 2 and "template is 'wizardmath' there and 'none' now" in ended.err
    assert called(gsm8k.main, *flags(data, "--chat_template", "none", "--seed", 1)).code == 0


def test_saved_completions_are_scored_anew_without_a_model(called, data, monkeypatch):
    assert called(gsm8k.main, *flags(data)).code == 0
    before = result(data)
    folder = data.parent / "results" / "code" / "gsm8k"
    samples = read_lines(folder / "0.jsonl")
    for sample, completion in zip(samples, COMPLETIONS, strict=True):
        sample["completion"] = completion
    (folder / "0.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    monkeypatch.setattr("eval.run.benchmark.Engine", None)  # nothing may be generated
    assert called(gsm8k.main, *flags(data, "--rescore")).code == 0
    paper = result(data)
    assert paper["score"] == pytest.approx(200 / 3) and paper["settings"] == before["settings"]
    assert paper["seconds"] == before["seconds"] and paper["source"] == before["source"]
    assert called(gsm8k.main, *flags(data, "--rescore", "--scoring", "release")).code == 0
    # Without the colon the release reads from the start of the completion, which changes nothing in this one.
    assert result(data)["score"] == pytest.approx(200 / 3) and result(data)["settings"]["scoring"] == "release"
    ended = called(gsm8k.main, *flags(data, "--rescore", "--limit", 2))
    assert ended.code == 2 and "3 saved, 2 now" in ended.err


def test_completions_of_a_file_are_scored(called, data):
    file = data.parent / "mine.jsonl"
    file.write_text(
        "".join(json.dumps({"id": str(n), "completion": text}) + "\n" for n, text in enumerate(COMPLETIONS))
    )
    common = ["--data", data, "--results_dir", data.parent / "results"]
    assert called(gsm8k.main, "--rescore", file, *common).code == 0
    assert result(data, "mine")["score"] == pytest.approx(200 / 3)
    file.write_text(json.dumps({"id": "0", "completion": COMPLETIONS[0]}) + "\n")
    ended = called(gsm8k.main, "--rescore", file, *common)
    assert ended.code == 2 and "another configuration" in ended.err  # the old score stays
    ended = called(gsm8k.main, "--rescore", file, "--name", "subset", *common)
    assert ended.code == 0 and result(data, "subset")["score"] == 100 and result(data, "subset")["n"] == 1


@pytest.mark.parametrize("scoring", ["paper", "release"])
def test_the_whole_test_set_scores_100_with_its_own_solutions(called, tmp_path, scoring):
    folder = os.environ.get("IMPART_DATA")
    if not folder or not (Path(folder) / "gsm8k_test.jsonl").is_file():
        pytest.skip("IMPART_DATA names no folder with gsm8k_test.jsonl")
    file = tmp_path / "gold.jsonl"
    lines = read_lines(Path(folder) / "gsm8k_test.jsonl")
    file.write_text(
        "".join(
            json.dumps({"id": str(n), "completion": item["answer"].replace("#### ", "The answer is: ")}) + "\n"
            for n, item in enumerate(lines)
        )
    )
    ended = called(gsm8k.main, "--rescore", file, "--scoring", scoring, "--results_dir", tmp_path)
    # By the release's rule 1,450,000 is 1,450.
    assert ended.code == 0 and ("100.00" if scoring == "paper" else "99.92") in ended.out


def test_wrong_input(called, data, tmp_path):
    ended = called(gsm8k.main, tmp_path / "nothing", "fp16", "--data", data, "--backend", "hf")
    assert ended.code == 2 and ended.err.startswith("error: ") and "no such folder" in ended.err
    ended = called(gsm8k.main, *flags(data, "--chat_template", "nice"))
    assert ended.code == 2 and "chat template 'nice' does not exist" in ended.err
    ended = called(gsm8k.main, *flags(data, "--max_model_len", 40))
    assert ended.code == 2 and "the prompt of item 0 has" in ended.err and "together may have 40" in ended.err
    data.write_text(json.dumps(ITEMS[0]) + "\n" + json.dumps({"question": "?", "answer": "no number"}) + "\n")
    ended = called(gsm8k.main, *flags(data))
    assert ended.code == 2 and "the answer of item 1 has no number after ####" in ended.err
    data.write_text(json.dumps(ITEMS[0]) + "\n" + json.dumps({"question": "?"}) + "\n")
    ended = called(gsm8k.main, *flags(data))
    assert ended.code == 2 and "line 2: field 'answer' is missing" in ended.err
    assert not list((tmp_path / "results").rglob("*.json"))
