"""Result files: resuming, refusing, rescoring, and never a mixture of two configurations."""

import copy
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest

from eval.report.scored import read_scored
from eval.run.benchmark import print_result, said_spread
from eval.run.results import (
    Completion,
    Run,
    Verdict,
    first_difference,
    mean_score,
    read_lines,
    read_result,
    wilson_interval,
)
from impart.errors import InputError

SETTINGS = {"scoring": "paper", "n": 3, "stop": ("a", "b")}


def run_of(tmp_path, **changes) -> Run:
    return Run(**{"results_dir": tmp_path, "model": "model", "benchmark": "sums", "seed": 0, **changes})


def finish(run: Run, settings=SETTINGS, score: float = 50.0) -> dict:
    return run.finish(
        [{"id": "0", "correct": True}],
        settings=settings,
        summary={"score": score, "stderr": 1.0},
        tokens=30,
        more={"source": "x"},
    )


def test_a_run_from_start_to_result(tmp_path):
    run = run_of(tmp_path)
    assert run.finished(SETTINGS) is None and run.start(SETTINGS) == {}
    run.add("0", Completion('line\nbreak \u2028 and "quotes"', 5, "stop"), 1.0)
    run.seconds += 1.5
    finish(run)
    assert sorted(path.name for path in run.folder.iterdir()) == ["0.json", "0.jsonl"]
    result = read_result(tmp_path / "model" / "sums" / "0.json")
    assert (result["score"], result["n"], result["tokens_per_second"], result["samples"]) == (50.0, 1, 20.0, "0.jsonl")
    assert result["settings"] == {"scoring": "paper", "n": 3, "stop": ["a", "b"]}
    assert {
        "model",
        "benchmark",
        "seed",
        "score",
        "stderr",
        "n",
        "settings",
        "versions",
        "seconds",
        "tokens_per_second",
        "samples",
    } <= set(result)
    assert run_of(tmp_path).finished(SETTINGS) == result


def test_an_interrupted_run_continues_and_drops_a_torn_line(tmp_path):
    first = run_of(tmp_path)
    first.start(SETTINGS)
    first.add("0", Completion("zero", 1, "stop"), 2.0)
    first.add("1", Completion("one", 2, "length"), 3.0)
    del first
    part = tmp_path / "model" / "sums" / "0.part.jsonl"
    with part.open("a") as file:
        file.write('{"id": "2", "text": "tw')
    second = run_of(tmp_path)
    assert second.start(SETTINGS) == {"0": Completion("zero", 1, "stop"), "1": Completion("one", 2, "length")}
    assert second.seconds == 3.0
    second.add("2", Completion("two", 3, "stop"), 1.0)
    assert [line.get("id") for line in read_lines(part)] == [None, "0", "1", "2"]
    assert read_lines(part)[-1]["seconds"] == 4.0
    second.seconds += 1.0
    assert finish(second)["seconds"] == 4.0
    assert not part.exists()


def test_an_interruption_in_the_first_line_starts_anew(tmp_path):
    run = run_of(tmp_path)
    run.folder.mkdir(parents=True)
    run.part_path.write_text('{"scoring": "pa')
    assert run.start(SETTINGS) == {}
    assert read_lines(run.part_path)[0]["scoring"] == "paper"


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"scoring": "release"}, "scoring is 'paper' there and 'release' now"),
        ({"n": 4}, "n is 3 there and 4 now"),
        ({"extra": 1}, "extra is 'absent' there and 1 now"),
    ],
)
def test_another_configuration_is_refused_with_its_first_difference(tmp_path, changed, key):
    interrupted = run_of(tmp_path, seed=1)
    interrupted.start(SETTINGS)
    interrupted.add("0", Completion("zero", 1, "stop"), 1.0)
    del interrupted
    with pytest.raises(InputError, match=f"1.part.jsonl is of another configuration: {key}; --overwrite"):
        run_of(tmp_path, seed=1).start(SETTINGS | changed)
    run = run_of(tmp_path)
    run.start(SETTINGS)
    finish(run)
    with pytest.raises(InputError, match=f"0.json is of another configuration: {key}"):
        run_of(tmp_path).finished(SETTINGS | changed)


def test_a_run_that_ended_before_its_first_completion_is_in_nobody_s_way(tmp_path):
    """Such as one whose model did not fit, and which is tried again with another flag."""
    failed = run_of(tmp_path)
    failed.start(SETTINGS)
    del failed
    assert run_of(tmp_path).start(SETTINGS | {"max_model_len": 100}) == {}


def test_another_software_version_does_not_continue_a_run(tmp_path):
    run = run_of(tmp_path)
    run.start(SETTINGS)
    run.add("0", Completion("zero", 1, "stop"), 1.0)
    header, line = read_lines(run.part_path)
    del run
    header["versions"]["torch"] = "0.1"
    (tmp_path / "model" / "sums" / "0.part.jsonl").write_text(json.dumps(header) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(InputError, match="versions is .*0.1"):
        run_of(tmp_path).start(SETTINGS)


def test_overwrite_starts_anew_and_keeps_the_old_result_until_the_end(tmp_path):
    run = run_of(tmp_path)
    run.start(SETTINGS)
    finish(run, score=10.0)
    other = {**SETTINGS, "scoring": "release"}
    again = run_of(tmp_path)
    assert again.finished(other, overwrite=True) is None
    assert again.start(other, overwrite=True) == {}
    again.add("0", Completion("zero", 1, "stop"), 1.0)
    assert read_result(again.result_path)["score"] == 10.0
    del again
    resumed = run_of(tmp_path)  # the interrupted overwrite goes on without the flag
    assert resumed.finished(other) is None
    assert list(resumed.start(other)) == ["0"]
    finish(resumed, other, score=20.0)
    assert read_result(resumed.result_path)["score"] == 20.0
    restarted = run_of(tmp_path)
    assert restarted.start(other, overwrite=True) == {}


def test_two_processes_never_write_one_run(tmp_path):
    run = run_of(tmp_path)
    run.start(SETTINGS)
    code = (
        f"import sys; sys.path[:0] = ['.']\nfrom pathlib import Path\nfrom eval.run.results import Run\n"
        f"Run(Path({str(tmp_path)!r}), 'model', 'sums', 0).start({SETTINGS!r})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and "another run is writing" in ended.stderr


def test_models_benchmarks_and_seeds_have_their_own_files(tmp_path):
    paths = {run_of(tmp_path, **change).result_path for change in ({}, {"model": "b"}, {"benchmark": "b"}, {"seed": 1})}
    assert len(paths) == 4


def test_files_that_are_no_results(tmp_path):
    run = run_of(tmp_path)
    run.folder.mkdir(parents=True)
    for text in ("", "[]", "{}", '{"settings": 3}', "{"):
        run.result_path.write_text(text)
        with pytest.raises(InputError, match="not a result file"):
            run.finished(SETTINGS)
    run.result_path.unlink()
    with pytest.raises(InputError, match="--rescore: .*0.json does not exist; run the benchmark without"):
        run.saved()
    run.start(SETTINGS)
    finish(run)
    run.samples_path.write_text('{"id": "0"}\n{"id"\n{"id": "2"}\n')
    with pytest.raises(InputError, match="0.jsonl, line 2: not valid JSON"):
        run.saved()


RESULT = {
    "model": "m",
    "benchmark": "sums",
    "seed": 0,
    "score": 50.0,
    "stderr": None,
    "interval_95": [20.0, 80.0],
    "n": 1,
    "settings": {},
    "seconds": 1.0,
    "samples": "0.jsonl",
    "delta": {"kind": "sparse", "method": "dare", "settings": {"compression_ratio": 4}, "linear_ratio": 4.0},
}
SAMPLE_LINE = {"id": "0", "prompt": "p", "completion": "c", "tokens": 1, "finish_reason": "stop", "correct": True}
OTHERS = (None, "x", -1, 2.5, True, [], {}, [None], {"a": 1}, 10**30, "../x", "a\nb")


@pytest.mark.parametrize("key", [*RESULT, "delta.kind", "delta.method", "delta.settings", "delta.linear_ratio"])
def test_no_value_of_a_result_ends_in_a_traceback(tmp_path, key):
    run = run_of(tmp_path)
    run.folder.mkdir(parents=True)
    run.samples_path.write_text(json.dumps(SAMPLE_LINE) + "\n")
    refusals = 0
    for value in ("gone", *OTHERS):
        result = copy.deepcopy(RESULT)
        at, name = (result["delta"], key.partition(".")[2]) if "." in key else (result, key)
        at[name] = value
        if value == "gone":
            del at[name]
        run.result_path.write_text(json.dumps(result))
        for read in (lambda: run.finished({}), run.saved, lambda: read_scored(run.result_path)):
            try:
                found = read()
            except InputError as error:
                refusals += 1
                assert "\n" not in str(error)
            else:
                assert not isinstance(found, dict) or print_result(found, SimpleNamespace(results_dir=tmp_path)) is None
    assert refusals > 3


@pytest.mark.parametrize("field", SAMPLE_LINE)
def test_no_value_of_a_sample_ends_in_a_traceback(tmp_path, field):
    run = run_of(tmp_path)
    run.folder.mkdir(parents=True)
    run.result_path.write_text(json.dumps(RESULT))
    for value in ([], {}, None, -1, "gone", float("nan")):
        sample = SAMPLE_LINE | {field: value}
        if value == "gone":
            del sample[field]
        run.samples_path.write_text(json.dumps(sample) + "\n")
        if field == "correct":
            with pytest.raises(InputError, match="line 1: field 'correct' is missing or not a truth value"):
                read_scored(run.result_path)
        else:
            with pytest.raises(InputError, match=f"line 1: field {field!r} is missing or not"):
                run.saved()


@pytest.mark.parametrize("field", ["id", "text", "tokens", "finish_reason", "seconds"])
def test_a_line_under_way_that_was_altered_is_named(tmp_path, field):
    run = run_of(tmp_path)
    run.start(SETTINGS)
    run.add("0", Completion("zero", 1, "stop"), 1.0)
    header, line = read_lines(run.part_path)
    run.part_path.write_text("".join(json.dumps(one) + "\n" for one in (header, line | {field: None})))
    del run
    with pytest.raises(InputError, match=f"line 2: field {field!r} is missing or not"):
        run_of(tmp_path).start(SETTINGS)


def test_a_result_names_no_file_of_another_folder(tmp_path):
    file = tmp_path / "0.json"
    for samples in ("/etc/passwd", "../0.jsonl", ".hidden", ""):
        file.write_text(json.dumps(RESULT | {"samples": samples}))
        with pytest.raises(InputError, match="samples is "):
            read_scored(file)


@pytest.mark.parametrize("name", ["", ".", "..", "../../evil", "/absolute", "a/b", "n" * 300, "a\nb", ".hidden"])
def test_a_name_stays_in_the_results(tmp_path, name):
    with pytest.raises(InputError, match="give another --name"):
        run_of(tmp_path, model=name)


def test_first_difference():
    assert first_difference({"a": 1, "b": 2}, {"b": 2, "a": 1}) is None
    assert first_difference({"a": 1, "b": 2}, {"b": 3, "a": 2}) == "b"
    assert first_difference({"a": 1, "old": 0}, {"a": 1}) == "old"


def test_score_and_standard_error():
    verdicts = [Verdict(None, None, n < 3) for n in range(12)]
    summary = mean_score(verdicts)
    assert summary["score"] == 25.0
    assert summary["stderr"] == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 12))
    # One standard error of GSM8K at the paper's 60.20, by hand: sqrt(.602 * .398 / 1319)
    n = 1319
    assert mean_score([Verdict(None, None, i < 794) for i in range(n)])["stderr"] == pytest.approx(1.348, abs=1e-3)


def test_a_printed_score_has_its_interval_and_a_standard_error_is_called_that():
    assert (
        said_spread(mean_score([Verdict(None, None, i < 794) for i in range(1319)])) == " (95 % interval 57.53-62.81)"
    )
    assert said_spread({"stderr": 1.348}) == " (standard error 1.35)" and said_spread({"stderr": None}) == ""


def test_wilson_interval_against_the_published_example():
    # 15 of 148: Newcombe (1998), Statistics in Medicine 17, table I, gives 0.0624 to 0.1605.
    low, high = wilson_interval(15, 148)
    assert (round(low, 2), round(high, 2)) == (6.24, 16.05)
    assert wilson_interval(0, 20) == (0.0, pytest.approx(16.1125, abs=1e-3))
    assert wilson_interval(20, 20)[1] == 100.0
