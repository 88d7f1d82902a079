"""The quickstart, run as a newcomer runs it, on a small grid; a second run makes nothing again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_quickstart_prints_a_table_and_reuses_what_is_there(tmp_path):
    given = {"VIRTUAL_ENV": sys.prefix, "RATIOS": "8", "SEEDS": "0", "RUNS": str(tmp_path / "runs")}
    variables = os.environ | given | {"IMPART_CACHE": str(tmp_path / "cache")}
    command = ["bash", str(ROOT / "reproduce" / "quickstart.sh"), "code"]
    first = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    for word in ("ImPart", "DARE", "LowRank", "base (whole)", "code (whole)", "CR 8"):
        assert word in first.stdout
    numbered = [line for line in first.stderr.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in numbered] == [f"step {n} of {len(numbered)}" for n in
                                                             range(1, len(numbered) + 1)]  # fmt: skip
    assert len(first.stderr.splitlines()) <= 3 + len(numbered)  # and a line for each of the three stages
    runs = tmp_path / "runs" / "tiny" / "code"
    assert (runs / "accuracy.png").is_file() and (runs / "accuracy.csv").is_file()
    before = {
        file: file.stat().st_mtime_ns for file in runs.rglob("*") if file.is_file() and "accuracy" not in file.name
    }
    second = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0 and second.stdout.splitlines()[-12:] == first.stdout.splitlines()[-12:]
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_a_dry_run_lists_the_steps_and_makes_nothing(tmp_path):
    variables = os.environ | {"RUNS": str(tmp_path / "runs"), "SEEDS": "0"}
    command = ["bash", str(ROOT / "reproduce" / "quickstart.sh"), "math", "--dry-run"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sparsify/sparsify.py") == 9 and "in all: " in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [["physics"], ["--pairs", "tiny/code"]])
def test_another_model_is_one_error_line(arguments):
    done = subprocess.run(
        ["bash", str(ROOT / "reproduce" / "quickstart.sh"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error:") and done.stdout == ""
