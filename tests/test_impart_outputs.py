"""What a run may replace, and that one output has one writer."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import delta
from impart.errors import InputError
from impart.outputs import MARKER, Output, refuse_existing
from merge import merge
from sparsify import sparsify

ROOT = Path(__file__).resolve().parents[1]
BASE, TUNED = ROOT / "assets" / "tiny" / "base", ROOT / "assets" / "tiny" / "code"
SPARSE = (f"base_model={BASE}", f"ftm_dir={TUNED}", "method=dare", "compression_ratio=8", "--threads", "1")


def test_overwrite_replaces_deltas_checkpoints_and_empty_folders(tmp_path):
    for name, content in (("delta", "delta.json"), ("model", MARKER), ("merged", "report.json"), ("empty", None)):
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / content).write_text("{}")
        refuse_existing(tmp_path / name, overwrite=True)
        with pytest.raises(InputError, match="add --overwrite"):
            refuse_existing(tmp_path / name, overwrite=False)


@pytest.mark.parametrize("kind", ["a folder of texts", "a file", "somebody's model"])
def test_overwrite_never_replaces_what_others_made(tmp_path, kind):
    target = tmp_path / "target"
    if kind == "a file":
        target.write_text("years of work")
    elif kind == "a folder of texts":
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
    else:
        shutil.copytree(BASE, target)
    with pytest.raises(InputError, match="which this suite did not make"):
        refuse_existing(target, overwrite=True)
    assert target.exists()


def test_no_output_replaces_an_input_or_a_folder_that_holds_one(tmp_path):
    model = tmp_path / "all" / "models" / "base"
    model.mkdir(parents=True)
    (tmp_path / "all" / MARKER).touch()
    for output in (model, model.parent, tmp_path / "all"):
        with pytest.raises(InputError, match="which this run reads"):
            refuse_existing(output, True, [None, "a/hub-id", model])
    link = tmp_path / "link"
    link.symlink_to(model)
    with pytest.raises(InputError, match="which this run reads"):
        refuse_existing(link, True, [model])
    refuse_existing(tmp_path / "beside", True, [model])


@pytest.mark.parametrize("name", ["\udcff", "a\0b"])
def test_names_that_no_file_can_have_are_one_line(tmp_path, name):
    with pytest.raises(InputError, match="take another name"):
        refuse_existing(tmp_path / name, False)


@pytest.mark.parametrize("verb", ["svd", "sparsify", "rebuild", "merge"])
def test_every_script_keeps_its_inputs(called, tmp_path, verb):
    ended = called(sparsify.main, *SPARSE, f"save_dir={tmp_path / 'd'}")
    assert ended.code == 0, ended.err
    runs = {
        "svd": (delta.main, "--svd", "--base_model", BASE, "--finetuned_model", TUNED, "--save_path", TUNED),
        "sparsify": (sparsify.main, *SPARSE, f"save_dir={BASE}"),
        "rebuild": (delta.main, "--merge", "--delta_path", tmp_path / "d", "--save_path", tmp_path / "d"),
        "merge": (merge.main, "--merge_method", "ta_1", "--ptm_pth", BASE, "--math_pth", TUNED, "--save_pth", BASE),
    }
    ended = called(*runs[verb], "--overwrite")
    assert ended.code == 2 and "which this run reads" in ended.err, ended.err
    assert (TUNED / "model.safetensors").is_file() and (BASE / "model.safetensors").is_file()
    assert (tmp_path / "d" / "delta.json").is_file()


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    holder = (
        "import sys; from pathlib import Path; from impart.outputs import Output\n"
        f"Output(Path({str(tmp_path / 'out')!r})).hold()\nprint('held', flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", holder], stdin=-1, stdout=-1, cwd=ROOT, text=True)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another run is writing"):
        Output(tmp_path / "out").hold()
    process.stdin.close()
    assert process.wait(timeout=300) == 0
    mine = Output(tmp_path / "out")
    mine.hold()
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    killed = (
        "import os, signal; from pathlib import Path; from impart.outputs import Output\n"
        f"Output(Path({str(tmp_path / 'out')!r})).hold()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", killed], cwd=ROOT).returncode == -9
    mine = Output(tmp_path / "out")
    mine.hold()
    mine.release()


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "0"}],
)
def test_a_rank_outside_of_its_world_is_one_line(called, tmp_path, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ended = called(sparsify.main, *SPARSE, f"save_dir={tmp_path / 'd'}")
    assert ended.code == 2 and "no process of a launcher" in ended.err


def test_steps_that_one_process_does_refuse_a_launcher(called, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for main, *arguments in (
        (delta.main, "--merge", "--delta_path", tmp_path, "--save_path", tmp_path / "m"),
        (merge.main, "--merge_method", "ta_1", "--ptm_pth", BASE, "--math_pth", TUNED, "--save_pth", tmp_path / "m"),
    ):
        ended = called(main, *arguments)
        assert ended.code == 2 and "cannot be split over processes" in ended.err
