"""Runs the steps of a plan: stage by stage, some at a time, each in processes of its own, on a GPU or by a launcher.

A pair's folder is locked from the first step to the last. The steps inherit the lock, so that those which outlive a
killed plan keep the next one out until they have ended.
"""

import contextlib
import fcntl
import itertools
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from impart.errors import InputError
from reproduce.steps import STAGES, Step
from reproduce.warm import WarmPython

LAST_LINES = 15  # of a failed step's output
PATIENCE = 5.0  # seconds that the steps of a killed plan are given to end
ROOT = Path(__file__).resolve().parents[1]


class StepFailed(Exception):
    """A step ended with an error; its message says which, and what it printed last."""


@dataclass(frozen=True)
class Machine:
    """How steps run here."""

    jobs: int
    gpus: int = 0
    threads: int = 0  # of each step's arithmetic; 0: all
    launch: tuple[str, ...] = ()  # prefix of every command: srun --gpus=1 -n1
    python: str = sys.executable
    warm: bool = False  # each slot's steps are forks of one process that has imported what they need

    @property
    def prefix(self) -> tuple[str, ...]:
        """What comes before every script."""
        return (*self.launch, self.python)


@contextlib.contextmanager
def held(runs: Path, pairs: Sequence[str]) -> Iterator[list[int]]:
    """Locks the folders of the pairs; gives the descriptors that steps inherit. InputError where another plan works."""
    with contextlib.ExitStack() as stack:
        descriptors = []
        for pair in pairs:
            folder = runs / pair
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / ".lock").open("a"))
            if not _locked_in_time(lock.fileno()):
                raise InputError(f"another script is at work in {folder}; wait for it, or set RUNS to another folder")
            descriptors.append(lock.fileno())
        yield descriptors


def run_steps(steps: Sequence[Step], runs: Path, machine: Machine, locks: Sequence[int] = ()) -> None:
    """All steps, stage by stage; StepFailed after the first one that fails, once those beside it have ended."""
    numbers = itertools.count(1)
    for stage in STAGES:
        own = [step for step in steps if step.stage == stage]
        if own:
            say(f"{stage}: {len(own)} step{'s' * (len(own) > 1)}, {machine.jobs} at a time")
            for step, spent in _run_stage(own, runs, machine, locks):
                say(f"step {next(numbers)} of {len(steps)}: {step.stage} {step.pair}, {step.detail}: {spent:.0f} s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run_stage(
    steps: Sequence[Step], runs: Path, machine: Machine, locks: Sequence[int]
) -> Iterator[tuple[Step, float]]:
    """Every step as soon as it has ended, and the seconds that it took."""
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(machine.jobs):
        slots.put(slot)
    failed = threading.Event()
    warm: dict[int, WarmPython] = {}  # by slot

    def work(step: Step) -> tuple[Step, float] | None:
        if failed.is_set():
            return None
        slot, started = slots.get(), time.monotonic()
        try:
            if machine.warm and slot not in warm:
                warm[slot] = WarmPython(machine.python, ROOT, _environment(machine, slot), locks)
            _run_step(step, runs, machine, slot, locks, warm.get(slot))
            return step, time.monotonic() - started
        except BaseException:
            failed.set()
            raise
        finally:
            slots.put(slot)

    try:
        with ThreadPoolExecutor(machine.jobs) as pool:
            for future in as_completed([pool.submit(work, step) for step in steps]):
                if ended := future.result():
                    yield ended
    finally:
        for process in warm.values():
            process.close()


def _run_step(
    step: Step, runs: Path, machine: Machine, slot: int, locks: Sequence[int], warm: WarmPython | None
) -> None:
    """The commands of one step; what it prints is shown only if it fails."""
    name = f"step-{os.getpid()}-{threading.get_ident()}"
    log = runs / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = _environment(machine, slot)
    log.touch()
    for command in step.commands:
        full = [*machine.prefix, *command]
        if warm:
            code = warm.run(command, log.absolute())
        else:
            with log.open("ab") as output:
                code = subprocess.run(
                    full, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, pass_fds=list(locks)
                ).returncode
        if code:
            raise StepFailed(_told(full, code, log))
    for folder in step.removes:
        shutil.rmtree(folder, ignore_errors=True)
    log.unlink()


def _environment(machine: Machine, slot: int) -> dict[str, str]:
    """The step's variables. A launcher gives its own GPU; here, the slot's, of those that the user left visible."""
    variables = dict(os.environ)
    if machine.gpus and not machine.launch:
        visible = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
        variables["CUDA_VISIBLE_DEVICES"] = (visible or list(map(str, range(machine.gpus))))[slot % machine.gpus]
    if machine.threads == 1:
        variables["OMP_NUM_THREADS"] = "1"
    return variables


def _told(command: Sequence[str], code: int, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else "failed"
    return "\n".join(
        [f"error: this step {ended}; its last lines, of {log}:", *lines, f"command: {shlex.join(command)}"]
    )


def _locked_in_time(descriptor: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
