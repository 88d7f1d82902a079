"""How scripts end: exit codes, one `error:` line, the traceback only on request."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from impart import errors
from impart.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def fails(arguments):
    raise InputError("ratio is 0,\n  and must be 1 or more;\ttake 8")


def test_input_error_is_one_line_and_exit_code_2(called):
    ended = called(fails)
    assert (ended.code, ended.out, ended.err) == (2, "", "error: ratio is 0, and must be 1 or more; take 8\n")


def test_debug_adds_the_traceback_and_keeps_the_exit_code(called):
    ended = called(fails, "--debug")
    assert ended.code == 2
    assert "Traceback (most recent call last)" in ended.err and "in fails" in ended.err
    assert ended.err.splitlines()[-1] == "error: ratio is 0, and must be 1 or more; take 8"


def test_a_bug_is_not_dressed_up_as_bad_input(monkeypatch):
    def bug(arguments):
        raise KeyError("x")

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(KeyError):
        errors.run(bug)


def test_a_plain_value_error_is_a_bug_too(monkeypatch):
    def bug(arguments):
        raise ValueError("x")

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(ValueError, match="^x$"):
        errors.run(bug)


def test_arguments_are_passed_and_success_is_exit_code_0(called):
    seen = []
    assert called(seen.append, "--a", "b").code == 0
    assert seen == [["--a", "b"]]


def test_interruption_says_how_to_continue(called):
    def interrupted(arguments):
        raise KeyboardInterrupt

    ended = called(interrupted)
    assert ended.code == 130 and "rerun the same command" in ended.err


def test_what_the_system_says_of_a_file_is_one_line(called, tmp_path):
    ended = called(lambda arguments: (tmp_path / ("x" * 300)).mkdir())
    assert ended.code == 2 and ended.err.startswith("error: ") and ended.err.endswith("File name too long\n")
    (tmp_path / "file").write_text("")
    ended = called(lambda arguments: list((tmp_path / "file" / "below").iterdir()))
    assert ended.code == 2 and "file/below': Not a directory" in ended.err


def test_a_full_disk_is_one_line_and_no_fault_of_the_input(called):
    def full(arguments):
        raise OSError(28, "No space left on device")

    ended = called(full)
    assert (ended.code, ended.err) == (1, "error: [Errno 28] No space left on device\n")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """Both where the pipe breaks in the middle and where all of it is still to be flushed at the end."""
    for lines in (3, 100_000):
        code = f"from impart.errors import run\nrun(lambda arguments: print('line\\n' * {lines}))"
        command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | true; echo ${{PIPESTATUS[0]}}"
        for _ in range(3):
            done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
            assert done.stderr == "" and done.stdout.strip() in ("0", "141")
