"""Runs programs that a language model wrote, so that whatever they do harms nothing but their own score.

    run_programs(["assert 1 + 1 == 2", "while True: pass"])
    ->  [Outcome(True, "passed"), Outcome(False, "timed out after 3 s")]

README.md beside this file says what that covers and what not. Where a protection is not available (a container that
forbids namespaces, another system than Linux) nothing is run, unless the caller takes what there is.
"""

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)
FIRST_USER_ID = 65000  # one unused id per worker, so that nothing is shared between two programs
_ENVIRONMENT = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
_START = "import sys; sys.path.insert(0, {root!r}); from eval.sandbox.worker import main; main()"
_FOLDERS = ("/tmp", "/scratch", "/writable")  # where a program may write; the first that hides no part of the library
TRIES = 3  # for a program that is killed from outside
_PROBE = "import csv, tempfile\nassert abs(-1) == 1"  # reads the library from disk, which a hidden one must still allow


@dataclass(frozen=True)
class Outcome:
    """What became of one program: `detail` is "passed" or one line of why not, `output` the first 4 KiB it printed."""

    passed: bool
    detail: str
    output: str = ""


@dataclass(frozen=True)
class Layers:
    """The protections that are optional because a system may lack them; the others are always there."""

    namespaces: bool
    filter: bool
    user: bool

    def missing(self) -> list[str]:
        """What this lacks of full protection, in words."""
        parts = ["namespaces of its own (own users, mounts, processes)"] * (not self.namespaces)
        parts += ["a system-call filter"] * (not self.filter)
        return parts + ["an unprivileged user"] * (_is_root() and not self.user)

    def __str__(self) -> str:
        parts = ["own pid, mount, network, ipc namespaces with a hidden read-only file system"] * self.namespaces
        parts += ["system-call filter"] * self.filter + ["unprivileged user"] * self.user
        parts += ["audit hook"] * (not self.namespaces)
        return ", ".join([*parts, "resource limits", "private process group", "empty environment"])


class SandboxError(RuntimeError):
    """The sandbox cannot be put up as it has to be, or loses even harmless programs: no verdict would mean anything."""


class _Lost(Exception):
    """A program's process or worker was killed from outside; after how many seconds."""

    def __init__(self, detail: str, seconds: float):
        super().__init__(detail)
        self.seconds = seconds


def run_programs(
    programs: Sequence[str],
    *,
    timeout_s: float = 3.0,
    memory_mb: int = 1024,
    workers: int | None = None,
    preload: Sequence[str] = (),
    layers: Layers | None = None,
    kept_output: int = 4096,
) -> list[Outcome]:
    """Runs each program until its last line, an early end or a limit; those that come to their last line have passed.

    timeout_s: processor time of a program that computes, time by the clock of one that waits.
    memory_mb: address space of one process, in MiB.
    preload: modules that every program needs and that take long to import; each worker imports them once.
    layers: exactly these protections; None: full protection. SandboxError if one cannot be put up.
    kept_output: first bytes of what a program prints that its outcome has.
    """
    if not programs:
        return []
    workers = min(workers or available_cpus(), len(programs))
    layers = layers or required_layers()
    log.info("sandbox: %d workers, %g s and %d MiB per program; %s", workers, timeout_s, memory_mb, layers)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(programs)):
        waiting.put(index)
    outcomes: dict[int, Outcome] = {}
    lost: dict[int, _Lost] = {}

    def serve(slot: int) -> None:
        with _Worker(layers, slot, memory_mb, preload, kept_output) as worker:
            while True:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    outcomes[index] = worker.run(programs[index], timeout_s)
                except _Lost as loss:
                    log.warning("the sandbox lost a program (%s) and runs it again at the end", loss)
                    lost[index] = loss

    with ThreadPoolExecutor(workers) as pool:
        try:
            for finished in as_completed([pool.submit(serve, slot) for slot in range(workers)]):
                finished.result()
        finally:  # after an error or Ctrl-C no other program is begun
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
    for index in sorted(lost):
        with _Worker(layers, 0, memory_mb, preload, kept_output) as worker:
            outcomes[index] = _run_alone(worker, programs[index], timeout_s, lost[index])
    return [outcomes[index] for index in range(len(programs))]


def _run_alone(worker: "_Worker", program: str, timeout_s: float, lost: _Lost) -> Outcome:
    """The outcome of a program that was lost, with nothing beside it that could have made the memory short.

    It is wrong when it is lost every time, while a harmless program that takes as long never is. SandboxError where
    that one is lost, too.
    """
    for _ in range(TRIES - 1):
        control = f"import time; time.sleep({lost.seconds + 0.5})"
        try:
            worker.run(control, lost.seconds + 30)
        except _Lost as loss:
            raise SandboxError(
                f"the sandbox loses harmless programs, too ({loss}): something kills its processes, "
                "most likely the system for want of memory"
            ) from loss
        try:
            return worker.run(program, timeout_s)
        except _Lost as loss:
            lost = loss
    return Outcome(False, f"lost {TRIES} times: {lost}")


def available_cpus() -> int:
    """The processors that this process may use, at most 16: with more, starting programs takes longer than they do."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def required_layers(weak: bool = False) -> Layers:
    """The strongest protections of this machine. SandboxError where they are not full, unless `weak` takes them so."""
    layers = strongest_layers()
    if missing := layers.missing():
        lacks = (
            f"the sandbox for generated programs is not closed: this system does not give it {' and '.join(missing)}"
        )
        if not weak:
            raise SandboxError(lacks)
        log.warning("%s; programs may read your files and more (eval/sandbox/README.md)", lacks)
    return layers


def _is_root() -> bool:
    return hasattr(os, "getuid") and os.getuid() == 0


def strongest_layers() -> Layers:
    """Tries the combinations of protections on a harmless program, strongest first; returns the first that works."""
    linux, root = sys.platform == "linux", _is_root()
    for namespaces, user, filter in ((1, 1, 1), (1, 0, 1), (1, 1, 0), (0, 1, 1), (0, 0, 1), (0, 1, 0), (0, 0, 0)):
        layers = Layers(bool(namespaces), bool(filter), bool(user))
        if (namespaces or filter) and not linux or user and not root:
            continue
        try:
            with _Worker(layers, 0, 1024) as worker:
                if worker.run(_PROBE, 30.0).passed:
                    return layers
        except (SandboxError, _Lost) as error:
            log.debug("not available here (%s): %s", error, layers)
    raise SandboxError("no program can be run in the sandbox; run with --debug to see why")


def _library() -> list[str]:
    """The folders of Python's own library and of the installed packages, as in this interpreter."""
    standard = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    standard += [path for path in sys.path if Path(path).name == "lib-dynload"]
    installed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [path for path in dict.fromkeys([*standard, *installed]) if Path(path).is_dir()]


def _visible() -> list[str]:
    """What a program may read: Python's library, shared libraries, four devices. No path lies inside another."""
    prefix = Path(sys.base_prefix)
    wanted = [
        prefix / "lib",
        prefix / "lib64",
        *map(Path, _library()),
        Path("/lib"),
        Path("/lib64"),
        Path("/usr/lib"),
        Path("/usr/lib64"),
        Path("/usr/share/zoneinfo"),
        *(Path("/dev") / name for name in ("null", "zero", "random", "urandom")),
    ]
    kept: list[Path] = []
    for path in sorted({path for path in wanted if path.exists()}, key=lambda path: len(path.parts)):
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return [str(path) for path in kept]


def _writable_folder(visible: Sequence[str]) -> str:
    """The folder that programs write to in the namespaces: not one in which something visible lies."""
    return next(folder for folder in _FOLDERS if not any(Path(path).is_relative_to(folder) for path in visible))


class _Worker:
    """One worker interpreter and the pipes to it; restarted if it is lost."""

    _process: subprocess.Popen[bytes]

    def __init__(self, layers: Layers, slot: int, memory_mb: int, preload: Sequence[str] = (), kept_output: int = 4096):
        self._root = tempfile.TemporaryDirectory(prefix="sandbox-")
        self._limits = {"memory_mb": memory_mb, "kept_output": kept_output}
        visible = _visible()
        self._settings = {
            "namespaces": layers.namespaces,
            "filter": layers.filter,
            "root": self._root.name,
            "uid": FIRST_USER_ID + slot if layers.user else None,
            "visible": visible,
            "folder": _writable_folder(visible),
            "path": _library(),
            "environment": _ENVIRONMENT,
            "preload": list(preload),
        }

    def __enter__(self) -> "_Worker":
        self._start()
        return self

    def __exit__(self, *_) -> None:
        self._stop()
        self._root.cleanup()

    def run(self, program: str, timeout_s: float) -> Outcome:
        """The outcome of one program. _Lost where it was killed from outside; the next one finds a new worker."""
        begun = time.monotonic()
        answer = self._ask(self._limits | {"program": program, "timeout_s": timeout_s})
        if "passed" in answer:
            return Outcome(answer["passed"], answer["detail"], answer["output"])
        if "refused" in answer:
            raise SandboxError(f"the sandbox could not be closed, so nothing was run in it: {answer['refused']}")
        self._stop()
        self._start()
        raise _Lost(answer["lost"], time.monotonic() - begun)

    def _start(self) -> None:
        """Starts the interpreter. One that is killed before it is ready is started again, a few times."""
        for _ in range(TRIES):
            answer = self._started()
            if answer.get("ready"):
                return
            self._stop()
            if "lost" not in answer:
                break
        raise SandboxError(answer.get("detail") or answer["lost"])

    def _started(self) -> dict:
        root = str(Path(__file__).resolve().parents[2])
        libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-B", "-c", _START.format(root=root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_ENVIRONMENT | libraries,
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        return self._ask(self._settings)

    def _stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # what it could not be sent any more is still in the buffer
            self._requests.close()  # its sign to leave, also in the middle of a program
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def _ask(self, message: dict) -> dict:
        try:
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()
        except BrokenPipeError:
            return {"lost": "its worker has ended"}
        line = self._answers.readline()
        return json.loads(line) if line else {"lost": "its worker has ended"}
