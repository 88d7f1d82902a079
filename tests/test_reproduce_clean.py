"""What runs leave behind is listed and removed, and nothing else."""

import subprocess
import sys

import pytest

from impart.outputs import MARKER
from reproduce import clean


@pytest.fixture
def left(tmp_path, monkeypatch):
    """A cache with a rebuilt model and a folder of runs with partial folders of ours and of others."""
    monkeypatch.setenv("IMPART_CACHE", str(tmp_path / "cache"))
    model, runs = tmp_path / "cache/reconstructed/abc", tmp_path / "runs"
    files = {
        model / "model.safetensors": 1000,
        runs / "pair/delta.partial/.progress/run.json": 20,
        runs / "pair/model.partial" / MARKER: 0,
        runs / "pair/model.partial/model.safetensors": 300,
        runs / "notes.partial/thesis.tex": 7,
        runs / "pair/delta/delta.json": 5,
    }
    for file, size in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
    return model, runs


def test_it_lists_and_removes_on_demand(left, called):
    model, runs = left
    told = called(clean.main, str(runs)).out
    assert "1,320" in told and "nothing was removed" in told and "thesis" not in told and "notes" not in told
    assert model.exists() and (runs / "pair/model.partial").exists()
    assert "1,320 bytes are free again" in called(clean.main, str(runs), "--yes").out
    assert not model.exists() and sorted(path.name for path in runs.rglob("*.partial")) == ["notes.partial"]
    assert (runs / "pair/delta/delta.json").exists()
    assert called(clean.main, str(runs)).out == "nothing to remove\n"


@pytest.mark.parametrize("lock", ["cache/reconstructed/abc.lock", "runs/pair/.delta.lock"])
def test_what_is_in_use_stays(left, tmp_path, called, lock):
    program = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True); input()"
    user = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    user.stdout.readline()
    called(clean.main, str(left[1]), "--yes")
    kept = left[0] if "cache" in lock else left[1] / "pair/delta.partial"
    assert kept.is_dir() and not (left[1] / "pair/model.partial").exists()
    user.communicate(b"\n", timeout=20)
