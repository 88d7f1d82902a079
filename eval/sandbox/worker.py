"""The small interpreter that runs the programs of `eval/sandbox/pool.py`, one after the other.

It is started with an empty environment, reads one JSON object a line from its standard input (first the protections to
put up, then one program each) and answers each with one line. Standard library only. Each program runs in a fork of it,
so that it finds a warm interpreter and leaves nothing behind:

    worker (namespaces, folder, clock) --fork--> the program (unprivileged, limits, filter)

Without the filter a program could fork; then a supervisor with a pid namespace of its own stands between the two.
"""

import functools
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from eval.sandbox import kernel, system_calls
from eval.sandbox.program import InTheProgram, run_and_report, with_parent
from eval.sandbox.watch import FOLDER_MEGABYTES, watch

# What completions import most, ready before the fork. Everything else is imported from the read-only library.
PRELOADED = (
    "array bisect cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq io "
    "itertools json math numbers operator random re statistics string typing"
).split()


def main() -> None:
    """Serves programs until the input ends. In the process of a program: runs it, with no frame above but this one."""
    begun = []
    try:
        serve()
    except InTheProgram as here:
        begun.append(here.prepare)
    if begun:  # only now has the exception, and with it the worker's frames, gone
        try:
            run_and_report(begun.pop()())
        finally:
            os._exit(1)


def serve() -> None:
    """Puts up the protections once, says so, then answers one request after the other."""
    # Not closed with the objects: in the process of a program these numbers soon belong to other files.
    requests, replies = os.fdopen(os.dup(0), "rb", closefd=False), os.fdopen(os.dup(1), "wb", closefd=False)
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
        answer: dict[str, object] = {"ready": True}
    except (OSError, ImportError) as error:
        answer = {"ready": False, "detail": str(error)}
    for name in [name for name in sys.modules if name == "eval" or name.startswith("eval.")]:
        del sys.modules[name]  # the program must not find this package where it looks for its own
    if settings["filter"]:
        system_calls.filter_code(read_only=not settings["namespaces"])
    gc.collect()
    gc.freeze()  # what is loaded now is shared by all forks; a collection would copy it page by page
    _send(replies, answer)
    # Under the filter a program is one process and leaves none behind; else a pid namespace of its own ends them all.
    answered = functools.partial(_answer, watch) if settings["filter"] else _supervised
    while answer["ready"] and (line := requests.readline()):
        _send(replies, answered(json.loads(line), settings, requests.fileno()))


def _go_inside(settings: dict) -> None:
    """Into the namespaces, as process 1 of a new tree; the process that was started only waits for it."""
    visible = [Path(path) for path in settings["visible"]]
    kernel.enter_namespaces(Path(settings["root"]), visible, Path(settings["folder"]))
    kernel.empty_folder(settings["folder"], FOLDER_MEGABYTES)
    kernel.own_process_tree()
    inside = os.fork()
    if inside:
        os.waitpid(inside, 0)
        os._exit(0)
    with_parent()


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


def _answer(watching: Callable[[dict, dict, int], dict], request: dict, settings: dict, caller: int) -> dict:
    """What became of one program. A failure of the sandbox itself is reported as such and never as a verdict."""
    try:
        return watching(request, settings, caller)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}


def _watch_apart(request: dict, settings: dict, caller: int) -> dict:
    """`watch` with a process tree, a folder and shared memory that end with this process."""
    with_parent()
    if settings["namespaces"]:
        kernel.own_mounts_and_ipc()
        kernel.own_process_tree()
    return watch(request, settings, caller)
