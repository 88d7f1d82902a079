"""Runs programs that a language model wrote, so that whatever they do harms nothing but their own score.

    run_programs(["assert 1 + 1 == 2", "while True: pass"])
    ->  [Outcome(True, "passed"), Outcome(False, "timed out after 3 s")]

README.md beside this file says what that covers and what not. Where a protection is not available (a container that
forbids namespaces, another system than Linux) the others still hold, and one log line says which are active.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)
FIRST_USER_ID = 65000  # one unused id per worker, so that nothing is shared between two programs
_ENVIRONMENT = {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
_START = "import sys; sys.path.insert(0, {root!r}); from eval.sandbox.worker import main; main()"
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

    def __str__(self) -> str:
        parts = ["own pid, mount, network, ipc namespaces with a hidden read-only file system"] * self.namespaces
        parts += ["system-call filter"] * self.filter + ["unprivileged user"] * self.user
        parts += ["audit hook"] * (not self.namespaces)
        return ", ".join([*parts, "resource limits", "private process group", "empty environment"])


def run_programs(
    programs: Sequence[str],
    *,
    timeout_s: float = 3.0,
    memory_mb: int = 1024,
    workers: int | None = None,
    preload: Sequence[str] = (),
    layers: Layers | None = None,
) -> list[Outcome]:
    """Runs each program until its last line, an early end or a limit; those that come to their last line have passed.

    timeout_s: processor time of a program that computes, time by the clock of one that waits.
    memory_mb: address space of one process, in MiB.
    preload: modules that every program needs and that take long to import; each worker imports them once.
    layers: exactly these protections; None takes the strongest that work. RuntimeError if one cannot be put up.
    """
    if not programs:
        return []
    workers = min(workers or available_cpus(), len(programs))
    layers = layers or strongest_layers()
    log.info("sandbox: %d workers, %g s and %d MiB per program; %s", workers, timeout_s, memory_mb, layers)
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(programs)):
        waiting.put(index)
    outcomes: dict[int, Outcome] = {}

    def serve(slot: int) -> None:
        with _Worker(layers, slot, memory_mb, preload) as worker:
            while True:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                outcomes[index] = worker.run(programs[index], timeout_s)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for finished in as_completed([pool.submit(serve, slot) for slot in range(workers)]):
                finished.result()
        finally:  # after an error or Ctrl-C no other program is begun
            with contextlib.suppress(queue.Empty):
                while True:
                    waiting.get_nowait()
    return [outcomes[index] for index in range(len(programs))]


def available_cpus() -> int:
    """The processors that this process may use, at most 16: with more, starting programs takes longer than they do."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def strongest_layers() -> Layers:
    """Tries the combinations of protections on a harmless program, strongest first; returns the first that works."""
    linux, root = sys.platform == "linux", hasattr(os, "getuid") and os.getuid() == 0
    for namespaces, user, filter in ((1, 1, 1), (1, 0, 1), (1, 1, 0), (0, 1, 1), (0, 0, 1), (0, 1, 0), (0, 0, 0)):
        layers = Layers(bool(namespaces), bool(filter), bool(user))
        if (namespaces or filter) and not linux or user and not root:
            continue
        try:
            with _Worker(layers, 0, 1024) as worker:
                if worker.run(_PROBE, 30.0).passed:
                    if not (layers.namespaces or layers.filter):
                        log.warning(
                            "this system offers neither namespaces nor a system-call filter: programs are held "
                            "by an audit hook and resource limits only; prefer Linux for untrusted code"
                        )
                    return layers
        except RuntimeError as error:
            log.debug("not available here (%s): %s", error, layers)
    raise RuntimeError("no program can be run in the sandbox; run with --debug to see why")


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


class _Worker:
    """One worker interpreter and the pipes to it; restarted if it is lost."""

    _process: subprocess.Popen[bytes]

    def __init__(self, layers: Layers, slot: int, memory_mb: int, preload: Sequence[str] = ()):
        self._root = tempfile.TemporaryDirectory(prefix="sandbox-")
        self._settings = {
            "namespaces": layers.namespaces,
            "filter": layers.filter,
            "root": self._root.name,
            "uid": FIRST_USER_ID + slot if layers.user else None,
            "memory_mb": memory_mb,
            "visible": _visible(),
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
        request = {"program": program, "timeout_s": timeout_s, "memory_mb": self._settings["memory_mb"]}
        for _ in range(2):
            answer = self._ask(request)
            if "passed" in answer:
                return Outcome(answer["passed"], answer["detail"], answer["output"])
            if "refused" in answer:
                raise RuntimeError(f"the sandbox could not be closed, so nothing was run in it: {answer['refused']}")
            log.warning("the sandbox lost a program (%s) and runs it once more", answer["lost"])
            self._stop()
            self._start()
        return Outcome(False, f"lost twice: {answer['lost']}")

    def _start(self) -> None:
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
        answer = self._ask(self._settings)
        if not answer.get("ready"):
            self._stop()
            raise RuntimeError(answer.get("detail") or answer["lost"])

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
