"""GSM8K and MATH as the package math-verify scores them, each answer in a process of its own."""

import json
import sys

import pytest

import eval.gsm8k as gsm8k
from eval import competition_math
from eval.scoring import packaged
from impart.errors import InputError


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(InputError, match="needs the package math-verify .*pip install"):
        packaged.check_package()


def test_gsm8k_reads_what_the_papers_rule_misses():
    pytest.importorskip("math_verify")
    texts = ["So, 9 * 2 = 18.", "So the final answer is 18.", "#### 18", "Answer: 18", "The answer is: 17.6", "No."]
    items = [{"answer": "#### 18"}] * len(texts)
    verdicts = gsm8k.score(items, texts, "math_verify")
    assert [verdict.correct for verdict in verdicts] == [True] * 4 + [False] * 2
    assert [verdict.correct for verdict in gsm8k.score(items, texts, "paper")] == [False] * 4 + [True, False]
    assert gsm8k.score([{"answer": "#### 1,200"}], ["The answer is: 1200."], "math_verify")[0].correct


def test_math_compares_by_algebra_and_never_hangs(caplog):
    pytest.importorskip("math_verify")
    texts = [
        "The answer is: \\sqrt{12}.",  # simplified: not by the paper's rule
        "Thus $x = \\boxed{2\\sqrt{3}}$.",  # no "The answer is:"
        "The answer is: $2\\sqrt 3$. I hope it is correct.",
        "The answer is: 9^{9^{9^{9^9}}}",
        "The answer is: 3",
    ]
    items = [{"solution": "\\boxed{2\\sqrt{3}}"}] * len(texts)
    verdicts = competition_math.score(items, texts, "math_verify")
    assert [verdict.correct for verdict in verdicts] == [True, True, True, False, False]
    assert verdicts[3].extracted is None and "gave no result for 1 of 5 answers" in caplog.text


def test_the_result_says_how_it_was_scored(called, tmp_path):
    pytest.importorskip("math_verify")
    data, answers = tmp_path / "gsm8k_test.jsonl", tmp_path / "a.jsonl"
    data.write_text(json.dumps({"question": "?", "answer": "#### 18"}) + "\n")
    answers.write_text(json.dumps({"id": "0", "completion": "#### 18"}) + "\n")
    flags = ("--rescore", answers, "--data", data, "--results_dir", tmp_path / "r", "--scoring", "math_verify")
    assert called(gsm8k.main, *flags).code == 0
    result = json.loads((tmp_path / "r/a/gsm8k/0.json").read_text())
    assert (result["score"], result["settings"]["scoring"]) == (100, "math_verify")
    assert result["versions"]["math-verify"]
