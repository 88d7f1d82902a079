"""What runs leave behind is listed and removed, and nothing else."""

import subprocess
import sys

import pytest

from impart.outputs import MARKER
from reproduce import clean


@pytest.fixture
def runs(tmp_path):
    """A folder of runs with partial folders of ours and of others."""
    files = {
        "pair/delta.partial/.progress/run.json": 20,
        f"pair/model.partial/{MARKER}": 0,
        "pair/model.partial/model.safetensors": 300,
        "notes.partial/thesis.tex": 7,
        "pair/delta/delta.json": 5,
    }
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    return tmp_path


def test_it_lists_and_removes_on_demand(runs, called):
    told = called(clean.main, str(runs)).out
    assert "320" in told and "nothing was removed" in told and "notes" not in told
    assert (runs / "pair/model.partial").exists()
    assert "320 bytes are free again" in called(clean.main, str(runs), "--yes").out
    assert sorted(path.name for path in runs.rglob("*.partial")) == ["notes.partial"]
    assert (runs / "pair/delta/delta.json").exists()
    assert called(clean.main, str(runs)).out == "nothing to remove\n"
    mistyped = called(clean.main, str(runs / "rnus"))
    assert mistyped.code == 2 and mistyped.err == f"error: there is no folder '{runs / 'rnus'}'\n"


def test_what_is_being_written_stays(runs, called):
    program = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", program, runs / "pair/.delta.lock"]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writer.stdout.readline()
    called(clean.main, str(runs), "--yes")
    assert (runs / "pair/delta.partial").is_dir() and not (runs / "pair/model.partial").exists()
    writer.communicate(b"\n", timeout=300)
