"""What a run tells: progress lines, report.json and tables."""

import json
import logging
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from impart import report
from impart.report import Report, git_commit, progress, table, versions

ROOT = Path(__file__).resolve().parents[1]


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(report.time, "monotonic", lambda: self.now)


def test_progress_passes_the_items_on_and_is_silent_when_fast(caplog, monkeypatch):
    Clock(monkeypatch)
    with caplog.at_level(logging.INFO):
        assert list(progress([3, 1, 2], what="svd")) == [3, 1, 2]
        assert list(progress([], what="svd")) == []
    assert caplog.text == ""


def test_progress_says_rate_and_remaining_time_every_ten_seconds_but_not_at_first(caplog, monkeypatch):
    clock = Clock(monkeypatch)
    with caplog.at_level(logging.INFO, logger="impart"):
        for item in progress(list(range(10)), what="svd", unit="matrix"):
            clock.now += 12.0 if item == 0 else 4.0  # a slow start
    assert caplog.messages == [
        "svd: 1 of 10",
        "svd: 4 of 10, 0.25 matrix/s, 24 s left",
        "svd: 7 of 10, 0.25 matrix/s, 12 s left",
    ]


def test_progress_draws_a_bar_on_a_terminal_first_without_an_estimate(capsys, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="impart")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress([1, 2], what="svd", unit="matrix")) == [1, 2]
    shown = capsys.readouterr().err
    assert "svd" in shown and "2/2" in shown and "matrix" not in shown
    monkeypatch.setattr(report, "PLAIN_SECONDS", 0.0)
    assert list(progress([1, 2], what="svd", unit="matrix")) == [1, 2]
    assert "matrix" in capsys.readouterr().err


def test_progress_can_be_taken_piece_by_piece():
    steps = progress(list(range(5)), what="x")
    assert list(islice(steps, 2)) == [0, 1] and list(islice(steps, 0)) == [] and list(islice(steps, 9)) == [2, 3, 4]


def test_a_report_holds_settings_facts_versions_time_and_rows(tmp_path):
    run = Report({"ratio": 8, "path": tmp_path})
    run.facts["seed"] = 3
    run.rows = [{"name": "w", "seconds": 0.5}]
    run.write(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["settings"] == {"ratio": 8, "path": str(tmp_path)} and content["seed"] == 3
    assert content["matrices"] == [{"name": "w", "seconds": 0.5}]
    assert content["versions"] == versions() and content["git_commit"] == git_commit()
    assert 0 <= content["seconds"] < 60 and 20 < content["peak_memory_mib"] < 100_000
    assert content["device"]


def test_versions_name_what_numbers_depend_on():
    found = versions()
    assert {"python", "torch", "numpy", "scipy", "safetensors"} <= set(found)
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_outside_of_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "__file__", str(tmp_path / "impart" / "report.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_tables_align_their_columns():
    assert table([("q_proj", 1, "1.50"), ("up", 1200, "x")], ("type", "n", "ratio")).splitlines() == [
        "type       n  ratio",
        "q_proj     1   1.50",
        "up      1200      x",
    ]


def test_tables_with_ragged_rows_are_a_bug():
    with pytest.raises((ValueError, IndexError)):
        table([("a", 1)], ("x", "y", "z"))


def test_logging_goes_to_stderr_libraries_are_quiet_and_memory_is_counted_in_mib():
    program = (
        "import logging; from impart.report import start_logging, peak_memory_mib; start_logging(); "
        "before = peak_memory_mib(); held = b'x' * (300 * 2**20); "
        "logging.getLogger('impart').info('hello'); logging.getLogger('httpx').info('noise'); "
        "print(250 < peak_memory_mib() - before < 350)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "hello\n")


def test_peak_memory_is_of_this_process_not_of_the_one_that_made_it():
    parent = (
        "import subprocess, sys; held = b'x' * (700 * 2**20); subprocess.run([sys.executable, '-c', "
        "'from impart.report import peak_memory_mib; print(peak_memory_mib() < 600)'])"
    )
    done = subprocess.run([sys.executable, "-c", parent], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True\n"
