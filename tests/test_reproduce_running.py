"""How steps are started and shown: interpreter, launcher and GPU of each; and lines that are drawn but are no rows."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from eval.report.paper import own_table, with_rows
from impart.errors import InputError
from reproduce.plan import refuse_missing
from reproduce.running import Machine, StepFailed, _environment, run_steps
from reproduce.steps import Step, Wanted, pasteable
from reproduce.things import Plan


def test_a_step_is_shown_as_it_runs_launcher_and_interpreter_first(tmp_path):
    machine = Machine(jobs=1, launch=("srun", "--gpus=1", "-n1"), python=str(tmp_path / "my env" / "bin" / "python"))
    step = Step("svd", "p", "svd", (("delta.py", "--save_path", "my runs/svd"),), (Path("t"),), (Path("my runs/old"),))
    shown = [shlex.split(line) for line in pasteable(step, machine.prefix)]
    assert shown[0] == ["srun", "--gpus=1", "-n1", machine.python, "delta.py", "--save_path", "my runs/svd"]
    assert shown[1] == ["rm", "-rf", "my runs/old"]


def test_every_command_goes_through_the_launcher(tmp_path, capsys):
    launcher = tmp_path / "launch it"
    launcher.write_text(f'#!/bin/sh\necho "$1" >> "{tmp_path}/launched"\nshift\nexec "$@"\n')
    launcher.chmod(0o755)
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    commands = tuple(("-c", code, str(tmp_path / f"made {number}")) for number in (1, 2))
    machine = Machine(jobs=2, gpus=2, launch=(str(launcher), "-n1"), python=sys.executable)
    run_steps([Step("svd", "p", "svd", commands, (tmp_path / "made 2",))], tmp_path / "my runs", machine)
    assert (tmp_path / "made 1").is_file() and (tmp_path / "made 2").is_file()
    assert (tmp_path / "launched").read_text().split() == ["-n1", "-n1"]
    assert not list((tmp_path / "my runs" / "logs").iterdir())
    stage, step = capsys.readouterr().err.splitlines()
    assert stage == "svd: 1 step, 2 at a time" and step.startswith("step 1 of 1: svd p, svd: ")


def test_slots_share_the_gpus_that_the_user_left_visible(monkeypatch):
    def gpus(**more):
        return [_environment(Machine(jobs=4, gpus=2, **more), slot).get("CUDA_VISIBLE_DEVICES") for slot in range(4)]

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert gpus() == ["2", "5", "2", "5"]
    assert gpus(launch=("srun",)) == ["2,5"] * 4  # a launcher gives its own


def test_a_drawn_line_is_a_cell_without_a_row(tmp_path):
    plan = Plan(Wanted(runs=tmp_path, seeds=(0,), threads=1, only_first=True))
    for line in ("base tiny/code 8 drawn", "finetuned tiny/code 8", "sparse dare tiny/code 8"):
        plan.add(line.split())
    labels = {cell.row: cell.label for cell in plan.cells}
    assert labels == {"backbone": "", "fine_tuned": "Fine-tuned", "dare": "DARE"}
    assert list(with_rows(own_table("mine"), labels).labels) == ["fine_tuned", "dare"]
    with pytest.raises(InputError, match="ratio"):
        plan.add(["sparse", "dare", "tiny/code", "none"])  # what a loop over a pair without `ratios` gives


def test_several_problems_are_a_line_each(capsys):
    with pytest.raises(InputError, match="2 things are missing.*one"):
        refuse_missing(["one", "two"])
    assert capsys.readouterr().err.splitlines() == ["missing: one", "missing: two"]
    refuse_missing([])


def test_steps_of_small_models_are_forks_of_one_process_and_say_how_they_ended(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "print('said', sys.argv[1:], 'torch' in sys.modules)\n"
        "if sys.argv[1] == 'end': sys.exit(3)\n"
        "if sys.argv[1] == 'raise': raise KeyError('wrong')\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getppid()))\n"
    )
    made = [tmp_path / name for name in ("a", "b")]
    machine = Machine(jobs=1, threads=1, warm=True)
    commands = tuple((str(script), str(file)) for file in made)
    run_steps([Step("svd", "p", "two", commands, (made[1],))], tmp_path / "runs", machine)
    parents = {file.read_text() for file in made}
    assert len(parents) == 1 and str(os.getpid()) not in parents
    for word, told in (("end", "said ['end'] True"), ("raise", "KeyError: 'wrong'")):
        with pytest.raises(StepFailed, match="this step failed") as failed:
            run_steps([Step("svd", "p", word, ((str(script), word),), (tmp_path / "c",))], tmp_path / "runs", machine)
        assert told in str(failed.value)
