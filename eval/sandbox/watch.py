"""One program from its start to its verdict: forked, listened to, timed, ended with all that it started.

Standard library only, because this runs in the small interpreter that `eval/sandbox/worker.py` is.
"""

import functools
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Callable

from eval.sandbox import kernel
from eval.sandbox.program import FILE_MEGABYTES, KEY_BYTES, READY, REFUSED, InTheProgram, give_everything_up

FOLDER_MEGABYTES = 64  # all that a program may leave in its folder
CLOSING = 0.5  # seconds within which a process that has closed its pipes has ended, unless it closed them on purpose
IDLE, PATIENCE = 0.01, 20  # share of a processor below which a program waits; longest time by the clock, in timeouts


def watch(request: dict, settings: dict, caller: int) -> dict:
    """Runs one program, waits for its verdict, its end, its time or too much output, and ends all it started.

    In the process of the program it does not return but raises InTheProgram.
    """
    folder = _empty_folder(settings)
    (verdict_read, verdict_write), (key_read, key_write), (output_read, output_write) = (os.pipe() for _ in range(3))
    program = os.fork()
    if program == 0:
        raise InTheProgram(
            functools.partial(give_everything_up, request, settings, folder, verdict_write, key_read, output_write)
        )
    for descriptor in (verdict_write, key_read, output_write):
        os.close(descriptor)
    try:
        opening = _line(verdict_read)
        if opening != READY:
            return _not_begun(opening)
        key = os.urandom(KEY_BYTES // 2).hex().encode()  # after the fork, which would have copied it
        os.write(key_write, key)
        started = time.monotonic()

        def left() -> float:
            return time_left(time.monotonic() - started, lambda: _processor_time(program), request["timeout_s"])

        verdict, output, stopped = _listen(verdict_read, output_read, caller, left, request["kept_output"])
        if not verdict and not stopped and _killed_from_outside(program):
            return {"lost": f"its process was killed after {time.monotonic() - started:.1f} s"}
    except BrokenPipeError:
        return {"lost": "its process was killed before it began"}
    finally:
        status = _end(program)
        for descriptor in (verdict_read, key_write, output_read):
            os.close(descriptor)
        if not settings["namespaces"]:
            shutil.rmtree(folder, ignore_errors=True)
    return _judged(verdict, key, output, stopped or _ending(status), request["timeout_s"])


def _line(descriptor: int) -> bytes:
    """One line, or what there is of it when the other end is closed."""
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(descriptor, 4096)):
        line += piece
    return line


def _not_begun(opening: bytes) -> dict:
    """Why there is no program to listen to."""
    if opening.startswith(REFUSED):
        return {"refused": opening.removeprefix(REFUSED).decode(errors="replace").strip()}
    return {"lost": "its process was killed before it began"}


def _killed_from_outside(program: int) -> bool:
    """Whether SIGKILL has ended the process: of its own accord a program hardly ever chooses that.

    A process that ends closes its pipes a moment before its status can be asked for.
    """
    deadline = time.monotonic() + CLOSING
    while time.monotonic() < deadline:
        ended = os.waitid(os.P_PID, program, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            return ended.si_status == signal.SIGKILL and ended.si_code == os.CLD_KILLED
        time.sleep(0.005)
    return False


def _empty_folder(settings: dict) -> str:
    """The program's own folder: in the namespaces the only one, which is replaced where the last one left something."""
    if settings["namespaces"]:
        folder = settings["folder"]
        if os.listdir(folder) or os.stat(folder).st_mode & 0o7777 != 0o1777:
            kernel.empty_folder(folder, FOLDER_MEGABYTES)
        return folder
    folder = tempfile.mkdtemp(prefix="program-")
    if settings["uid"] is not None:
        os.chown(folder, settings["uid"], settings["uid"])
    return folder


def _listen(
    verdict_read: int, output_read: int, caller: int, time_left: Callable[[], float], kept: int
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
                return verdict, output + _at_hand(output_read, kept - len(output)), ""
        elif left <= 0:  # looked at after the verdict, which may have come while this process had to wait
            return b"", output, "timed out"
        elif output_read in ready:
            piece = os.read(output_read, 65536)
            output, printed = output + piece[: kept - len(output)], printed + len(piece)
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


def _processor_time(program: int) -> float | None:
    """Seconds that a process has computed; None where the system does not say it of another process."""
    try:
        return time.clock_gettime(~program << 3 | 2)  # Linux: the clock of a process by its number, CPUCLOCK_SCHED
    except (AttributeError, OSError):
        return None


def time_left(waited: float, used: Callable[[], float | None], timeout_s: float) -> float:
    """Seconds until to look again; 0 when the time is over.

    waited: seconds since the start; used: asks for the processor time so far. What counts is processor time, so that a
    verdict does not depend on what else the machine does. A program that waits instead of computing has the same time
    by the clock, and none has more than PATIENCE times that.
    """
    if waited < timeout_s:
        return timeout_s - waited
    seconds = used()
    if seconds is None or seconds >= timeout_s or seconds < IDLE * waited or waited >= PATIENCE * timeout_s:
        return 0.0
    return max(0.05, min(timeout_s - seconds, PATIENCE * timeout_s - waited))


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


def _judged(verdict: bytes, key: bytes, output: bytes, ending: str, timeout_s: float) -> dict:
    """A verdict counts only with the key of this very run; no verdict is a failure."""
    answer = {"passed": False, "output": output.decode(errors="replace")}
    if verdict == key + b" passed\n":
        return answer | {"passed": True, "detail": "passed"}
    if verdict.startswith(key + b" ") and verdict.endswith(b"\n"):
        return answer | {"detail": verdict[len(key) + 1 : -1].decode(errors="replace")}
    if ending == "timed out":
        ending = f"timed out after {timeout_s:g} s"
    return answer | {"detail": ending}
