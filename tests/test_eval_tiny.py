"""The tiny pair's tasks: their gold answers, their checks against the generator's, and several models in one run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import delta
import eval.tiny as tiny
from assets.tiny import tasks
from eval.run.data import TINY_DATA
from eval.run.results import read_lines
from eval.scoring.tiny import SCORERS, program, score_code, score_math
from eval.tiny import MAX_TOKENS, STOP

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "assets" / "tiny"


def golds(task: str, split: str) -> tuple[list[dict], list[str]]:
    drawn = tasks.held_out(task, split, 200)
    return [item.record(number, split) for number, item in enumerate(drawn)], [item.completion for item in drawn]


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("task", ["math", "code", "chat"])
def test_every_gold_completion_is_correct(task, split):
    items, completions = golds(task, split)
    assert [item for item in read_lines(TINY_DATA / f"{task}_{split}.jsonl")] == items
    verdicts = SCORERS[task](items, completions)
    assert [verdict for verdict in verdicts if not verdict.correct] == []
    assert not any(stop in completion for stop in STOP[task] for completion in completions)


def test_gold_completions_fit_the_token_limit():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
    longest = max(len(tokenizer(text)["input_ids"]) for task in SCORERS for text in golds(task, "test")[1])
    assert longest < MAX_TOKENS


def test_answers_of_another_item_are_wrong():
    for task in ("math", "chat"):
        items, completions = golds(task, "test")
        verdicts = SCORERS[task](items, completions[1:] + completions[:1])
        assert sum(verdict.correct for verdict in verdicts) < 20


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 4 * 6 = 24. The answer is: 24", 24),
        ("The answer is: 3. The answer is: -5", -5),
        ("The answer is:7", 7),
        ("The answer is 7", None),
        ("7", None),
        ("The answer is: x", None),
        ("", None),
        ("The answer is: " + "9" * 400, None),
    ],
)
def test_math_answers(text, answer):
    assert score_math([{"answer": 24}], [text])[0].extracted == answer


CODE = {
    "prompt": 'def f(x):\n    """Return x plus 1."""\n',
    "entry_point": "f",
    "tests": [{"args": [1], "expect": 2}, {"args": [2], "expect": 3}],
}


def test_code_is_judged_by_running_it():
    texts = [
        "    return x + 1\n",
        "    return x + 1.0\n",
        "    return 2\n",
        "return x + 1\n",
        "    return x +\n",
        "    import os\n    os._exit(0)\n",
        "    return y\n",
        "",
    ]
    verdicts = score_code([CODE] * len(texts), texts, timeout_s=60)
    assert [verdict.correct for verdict in verdicts] == [True] + [False] * (len(texts) - 1)
    assert verdicts[0].detail == "" and "[2]: 2" in verdicts[2].detail
    endless = score_code([CODE], ["    while True:\n        pass\n"], timeout_s=0.5)[0]
    assert not endless.correct and "timed out" in endless.detail


def test_code_results_are_compared_with_their_kind():
    true = {**CODE, "tests": [{"args": [1], "expect": True}]}
    assert [verdict.correct for verdict in score_code([true] * 2, ["    return True", "    return 1"])] == [True, False]
    odd = {**CODE, "tests": [{"args": ["quote ' \" \\ {x} \n \u00e9"], "expect": "quote ' \" \\ {x} \n \u00e9"}]}
    assert score_code([odd], ["    return x"])[0].correct
    assert compile(program(odd, "    return x"), "program", "exec")


def test_several_models_in_one_run_score_as_they_should(called, tmp_path):
    """Fine-tuned >> base on its skill, and nobody on another's."""
    ended = called(
        tiny.main,
        MODELS / "base",
        MODELS / "code",
        "--tasks",
        "code,math",
        "--limit",
        60,
        "--backend",
        "hf",
        "--results_dir",
        tmp_path,
    )
    assert ended.code == 0, ended.err
    scores = {(line.split()[1], line.split()[0]): float(line.split()[2]) for line in ended.out.splitlines()}
    assert scores["code", "tiny_code"] > 80 and scores["base", "tiny_code"] < 20
    assert scores["code", "tiny_math"] < 20 and scores["base", "tiny_math"] < 20
    result = json.loads((tmp_path / "code" / "tiny_code" / "0.json").read_text())
    assert result["settings"]["split"] == "test" and result["n"] == 60


def test_a_delta_scores_as_the_model_that_it_rebuilds(called, tmp_path):
    path = tmp_path / "code_svd.pt"
    made = called(
        delta.main,
        "--svd",
        "--base_model",
        MODELS / "base",
        "--finetuned_model",
        MODELS / "code",
        "--save_path",
        path,
        "--threads",
        1,
    )
    assert made.code == 0, made.err
    ended = called(
        tiny.main,
        path,
        MODELS / "code",
        "fp32",
        "--tasks",
        "code",
        "--limit",
        40,
        "--backend",
        "hf",
        "--results_dir",
        tmp_path,
    )
    assert ended.code == 0, ended.err
    scores = {line.split()[1]: line.split()[2] for line in ended.out.splitlines()}
    assert abs(float(scores["code_svd.pt"]) - float(scores["code"])) <= 5
    result = json.loads((tmp_path / "code_svd.pt" / "tiny_code" / "0.json").read_text())
    assert result["delta"]["kind"] == "svd" and result["source"] == str(path)


def test_the_shell_script(environment, tmp_path):
    arguments = [MODELS / "code", "fp32", "--tasks", "code", "--subset", "code-test-0,code-test-7", "--backend", "hf"]
    ended = subprocess.run(
        ["bash", str(ROOT / "eval/scripts/tiny.sh"), *map(str, arguments)],
        cwd=tmp_path,
        env=environment | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("tiny_code  code  ") and "(n = 2)  results/code/tiny_code/0.json" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "--tasks", "poetry"), "'poetry' is no task; known: math, code, chat"),
        (("a", "--tasks", ""), "'' is no task"),
        (("x/a", "y/a"), "two models are called 'a'"),
        (("x/a", "x/b", "--name", "c"), "--name is of one model"),
        (("nowhere/a/b", "--backend", "hf"), "no such folder"),
        ((), "MODEL"),
    ],
)
def test_wrong_input(called, tmp_path, arguments, message):
    ended = called(tiny.main, *arguments, "--results_dir", tmp_path)
    assert ended.code == 2 and message in ended.err


def test_an_unknown_check_is_named(called, tmp_path):
    (tmp_path / "chat_test.jsonl").write_text(
        json.dumps({"id": "c0", "prompt": "p", "checks": [{"kind": "rhymes"}]}) + "\n"
    )
    ended = called(tiny.main, MODELS / "base", "--tasks", "chat", "--data", tmp_path, "--results_dir", tmp_path)
    assert ended.code == 2 and "item c0 has an unknown check 'rhymes'; known: uppercase" in ended.err
