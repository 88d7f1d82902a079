"""Whole runs as the tests need them: compared file by file, killed, and started in several processes."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import delta
from impart.checkpoint import Checkpoint, open_checkpoint

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (
    "accelerate.commands.launch",
    "--num_processes",
    "2",
    "--cpu",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
)


def files_of(folder: Path, but=("report.json", "README.md")) -> dict[str, bytes]:
    """Every file below `folder` with its bytes; report.json holds times, and the card the command."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in but
    }


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def merge(called, path: Path, out: Path, *flags) -> Checkpoint:
    """delta.py --merge in this process; `called` is the fixture."""
    ended = called(delta.main, "--merge", "--delta_path", path, "--save_path", out, "--threads", "1", *flags)
    assert ended.code == 0, ended.err
    return open_checkpoint(out)


# A run of several layers is killed at each of these moments in turn, and goes on from there each time: function, when
# and number of its call (tests/killed.py), and how many shards have been recorded as complete by then.
MOMENTS = (
    ("artifact_writer.save_file", "during", 1, 0),  # the first shard is torn, under its temporary name
    ("artifact_writer.write_atomically", "before", 1, 0),  # the first shard has its name, but no record
    ("artifact_writer.write_atomically", "after", 2, 2),  # two complete shards, nothing half done
    ("artifact_writer.save_file", "during", 2, 3),
    ("artifact_writer.save_file", "after", 1, 3),  # a whole shard under its temporary name
    ("artifact_writer.write_atomically", "before", 3, 5),
    ("outputs.replace_folder", "before", 1, None),  # delta.json is there, the records are gone; no name yet
)


def killed_again_and_again(command: Sequence[str], folder: Path, environment: Mapping[str, str], moments=MOMENTS):
    """Run `command`, which writes an artifact to `folder`, once per moment until it dies there, then to its end."""
    program, script, *arguments = command
    records = folder.with_name(folder.name + ".partial") / ".progress"
    for name, when, number, complete in moments:
        killed = subprocess.run(
            [program, "tests/killed.py", name, when, str(number), script, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not folder.exists()
        if complete is None:
            assert not records.exists() and (records.parent / "delta.json").is_file()
        else:
            assert len(list(records.glob("*.safetensors.json"))) == complete, (name, when, number)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def launched(launcher, arguments, environment):
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
