"""Whole runs as the tests need them: compared file by file, killed, and started in several processes."""

import os
import random
import signal
import subprocess
import sys
import time
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


def files_of(folder: Path, but=("report.json",)) -> dict[str, bytes]:
    """Every file below `folder` with its bytes; report.json holds times."""
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


def stopped_at_random(command, folder: Path, environment, kills: int, generator: random.Random) -> int:
    """Runs the command again and again, each time killed shortly after it got on, and at last to its end."""
    partial, done, landed = folder.with_name(folder.name + ".partial"), 0, 0

    def records():
        try:
            return sum(name.endswith(".safetensors.json") for name in os.listdir(partial / ".progress"))
        except FileNotFoundError:  # not yet made, or just renamed
            return 0

    for _ in range(kills):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and records() <= done:
            time.sleep(0.001)
        time.sleep(generator.random() * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            landed += 1
        _, said = process.communicate()
        done = records()
        if folder.exists():
            break
        assert process.returncode == -signal.SIGKILL, said.decode()
    if not folder.exists():
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    return landed


def launched(launcher, arguments, environment):
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
