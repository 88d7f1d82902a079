"""MATH as a user runs it; its rules are tested in test_eval_answers.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import eval.competition_math as competition_math
from eval.run.results import read_lines

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "assets" / "tiny" / "code"
ITEMS = [
    {"problem": "What is $1/4$ as a decimal?", "solution": "It is $\\boxed{0.25}$.", "type": "Prealgebra"},
    {"problem": "Solve $x^2 = 4$.", "solution": "$\\boxed{1}$ no, $\\boxed{-2, 2}$.", "type": "Algebra"},
    {"problem": "What is $\\sqrt{8}$?", "solution": "$\\boxed{2\\sqrt{2}}$", "type": "Algebra"},
]
COMPLETIONS = ["So it is that. The answer is: \\frac14.\n", "The answer is: $-2, 2$.", "The answer is: 2\\sqrt 2"]


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "math_test.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return path


def test_a_run_on_a_subset(called, data, tmp_path):
    ended = called(
        competition_math.main,
        MODEL,
        "fp32",
        "--data",
        data,
        "--backend",
        "hf",
        "--subset",
        "type=Algebra",
        "--results_dir",
        tmp_path,
    )
    assert ended.code == 0, ended.err
    assert ended.out.startswith("math  code  0.00 (95 % interval 0.00-65.76)  (n = 2)  ")
    written = json.loads((tmp_path / "code/math/0.json").read_text())
    assert written["settings"]["max_tokens"] == 2048 and written["settings"]["template"] == "wizardmath"
    samples = read_lines(tmp_path / "code/math/0.jsonl")
    assert [(sample["id"], sample["gold"]) for sample in samples] == [("1", "-2, 2"), ("2", "2\\sqrt{2}")]
    assert "### Instruction:\nSolve $x^2 = 4$.\n\n### Response: Let's think step by step." in samples[0]["prompt"]


@pytest.mark.slow
def test_the_shell_script_from_another_folder(data, environment, tmp_path):
    arguments = [MODEL, "fp32", "--data", data, "--backend", "hf", "--limit", "1"]
    ended = subprocess.run(
        ["bash", str(ROOT / "eval/scripts/math.sh"), *map(str, arguments)],
        cwd=tmp_path,
        env=environment | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "math  code  0.00 (95 % interval 0.00-79.35)  (n = 1)  results/code/math/0.json\n"


@pytest.mark.parametrize(("scoring", "score"), [("paper", 100.0), ("release", 0.0)])
def test_completions_of_a_file_are_scored(called, data, tmp_path, scoring, score):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        "".join(json.dumps({"id": str(n), "completion": text}) + "\n" for n, text in enumerate(COMPLETIONS))
    )
    ended = called(
        competition_math.main, "--rescore", file, "--data", data, "--results_dir", tmp_path, "--scoring", scoring
    )
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "mine/math/0.json").read_text())["score"] == score
    samples = read_lines(tmp_path / "mine/math/0.jsonl")
    assert [sample["extracted"] for sample in samples] == ["\\frac14", "$-2, 2$", "2\\sqrt 2"]


def test_the_whole_test_set_scores_100_with_its_own_answers(called, tmp_path):
    folder = os.environ.get("IMPART_DATA")
    if not folder or not (Path(folder) / "math_test.jsonl").is_file():
        pytest.skip("IMPART_DATA names no folder with math_test.jsonl")
    from eval.answers import math_gold

    file = tmp_path / "gold.jsonl"
    solutions = [item["solution"] for item in read_lines(Path(folder) / "math_test.jsonl")]
    file.write_text(
        "".join(
            json.dumps({"id": str(n), "completion": f"{text}\nThe answer is: {math_gold(text)}."}) + "\n"
            for n, text in enumerate(solutions)
        )
    )
    ended = called(competition_math.main, "--rescore", file, "--results_dir", tmp_path)
    assert ended.code == 0 and "100.00 (95 % interval 99.92-100.00)  (n = 5000)" in ended.out


def test_a_solution_without_a_box(called, data):
    data.write_text(json.dumps(ITEMS[0] | {"solution": "It is 0.25."}) + "\n")
    ended = called(competition_math.main, MODEL, "fp32", "--data", data)
    assert ended.code == 2 and "the solution of item 0 has no \\boxed{} answer" in ended.err
