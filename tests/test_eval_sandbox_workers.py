"""The sandbox's interpreters: nothing passes from one program to the next, limits hold, and a lost one is replaced."""

import contextlib
import logging
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from sandboxed import KINDS, STRONGEST, each_protection, offered, one

from eval.sandbox import Layers, Outcome, SandboxError, required_layers, run_programs, system_calls
from eval.sandbox import pool as sandbox


@pytest.fixture
def workers_alive(monkeypatch) -> Callable[[], set[int]]:
    """Process ids of this test's sandbox interpreters and of all they forked (a fork keeps the command line)."""
    mark = uuid.uuid4().hex
    monkeypatch.setattr(sandbox, "_START", f"{sandbox._START}  # {mark}")
    return lambda: marked(mark)


def marked(mark: str) -> set[int]:
    """Process ids whose command line holds `mark`."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


LOCK = "import fcntl, os; fcntl.flock(open(os.__file__)"
THREADS = "import threading"
SHARED = "import ctypes; assert ctypes.CDLL(None)"
LEFT = {  # what a program does -> what the next one must find, in the same worker
    "import os\nfor i in range(10**6): os.mkdir(f'{i}')": "import os; os.mkdir('1')",
    "for i in range(9): open(f'{i}', 'wb').write(bytes(10 << 20))": "open('1', 'wb').write(bytes(10 << 20))",
    f"{LOCK}, fcntl.LOCK_EX)": f"{LOCK}, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    "import os, builtins; os._exit = os.write = builtins.compile = print\nraise ValueError": "import os; os.fstat(3)",
    "class M(type):\n    __name__ = property(lambda _: 1 / 0)\nclass E(Exception, metaclass=M): pass\n"
    "import os; os._exit = print\nraise E": "import os; os.fstat(3)",
    "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)": "import signal; assert not signal.sigpending()",
    "import os\nwhile True: os.dup(3)": "import os; os.dup(3)",
    "import os; os.closerange(0, 64)\nwhile True: pass": "print(1)",
    f"{THREADS}\ndef spin():\n    while True: pass\nfor _ in range(8): threading.Thread(target=spin).start()": (
        f"{THREADS}; assert threading.active_count() == 1"
    ),
    "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))": "import os; os.pipe()",
    f"{SHARED}.shmget(7, 4096, 0o1666) >= 0": f"{SHARED}.shmget(7, 0, 0) == -1",
}


@pytest.mark.parametrize(("filter", "user"), [(True, True), (True, False), (False, True)])
def test_one_program_leaves_nothing_for_the_next(filter, user, workers_alive):
    layers = Layers(True, filter, user and STRONGEST.user)
    if not offered(layers):
        pytest.skip(f"this system does not offer: {layers}")
    programs = [program for pair in LEFT.items() for program in pair]
    outcomes = run_programs(programs, workers=1, timeout_s=2.0, layers=layers)
    found = dict(zip(LEFT.values(), outcomes[1::2], strict=True))
    assert not {program: outcome for program, outcome in found.items() if not outcome.passed}
    assert not any(outcome.detail.startswith("lost") for outcome in outcomes)
    assert not workers_alive()


@each_protection
def test_fork_bomb_and_daemons_leave_nothing(layers, workers_alive):
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    daemon = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(300)\n    os._exit(0)"
    )
    popen = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])"
    threads = (
        "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, args=(300,)).start()\n"
        "    except RuntimeError: pass"
    )
    assert not one(bomb, layers, timeout_s=1.0).passed
    one(daemon, layers)
    one(popen, layers)
    assert not one(threads, layers, timeout_s=1.0).passed
    assert not workers_alive()


@each_protection
def test_memory_is_limited(layers):
    assert one("x = bytearray(10 * 10**9)", layers).detail == "failed: MemoryError"
    assert not one("x = []\nwhile True: x.append(bytearray(10**6))", layers, timeout_s=20.0, memory_mb=256).passed
    assert one("x = bytearray(100 * 10**6)", layers, memory_mb=512).passed


def test_a_huge_file_is_refused():
    outcome = one("import os\nwith open('big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))")
    assert outcome.detail.startswith(("failed: OSError", "failed: PermissionError", "failed: FileNotFoundError"))
    many = "for i in range(10**6): open(f'{i}', 'wb').write(bytes(1 << 20))"
    assert one(many, timeout_s=20.0).detail.startswith(("failed: OSError", "failed: PermissionError"))


@each_protection
def test_endless_output_is_bounded(layers):
    outcome = one("while True: print('x' * 10**5)", layers, timeout_s=20.0)
    assert outcome.detail == "printed more than 16 MiB" and len(outcome.output) == 4096
    assert one("import sys; print('kept'); sys.stderr.write('too\\n')", layers).output == "kept\ntoo\n"
    assert one("print('\\udcff')", layers).passed
    drip = one("while True: print('x', flush=True); sum(range(10**5))", layers, timeout_s=1.0)
    assert drip.detail == "timed out after 1 s" and drip.output.startswith("x\nx\n")


def test_modules_of_the_project_are_not_importable():
    assert one("import eval").detail.startswith("failed: ModuleNotFoundError")
    assert one("import impart").detail.startswith("failed: ModuleNotFoundError")


@each_protection
def test_the_library_and_installed_packages_are_importable(layers):
    numpy = "import numpy as np; assert (np.ones((64, 64)) @ np.ones((64, 64))).sum() == 64 ** 3"
    programs = [
        "import csv, sqlite3, asyncio, ssl, zoneinfo",
        numpy,
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\nassert A(1) == A(1)",
        "import pickle\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A",
        "import threading; t = threading.Thread(target=print); t.start(); t.join()",
        "import sys; assert __name__ != '__main__' and not sys.flags.optimize",
    ]
    for outcome in run_programs(programs, layers=layers, timeout_s=20.0):
        assert outcome.passed, outcome


def test_plain_work_with_descriptors_is_allowed():
    if not STRONGEST.namespaces:
        pytest.skip("without namespaces nothing may be written at all")
    outcome = one(
        "import fcntl, os, shutil\nassert fcntl.fcntl(1, fcntl.F_GETFL) == os.O_WRONLY and not os.isatty(1)\n"
        "os.set_blocking(1, True); os.set_inheritable(os.dup(1), True)\n"
        "open('a', 'w').write('x'); shutil.copy('a', 'b'); assert open('b').read() == 'x'\n"
        "fcntl.lockf(open('a', 'w'), fcntl.LOCK_EX); fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)"
    )
    assert outcome.passed, outcome


def test_modules_can_be_loaded_before_the_fork():
    assert one("import sys; assert 'sqlite3' not in sys.modules").passed
    [outcome] = run_programs(["import sys; assert 'sqlite3' in sys.modules"], preload=["sqlite3"])
    assert outcome.passed
    with pytest.raises(RuntimeError, match="no_such_module"):
        run_programs(["pass"], preload=["no_such_module"])


def test_hash_order_is_the_same_in_every_run():
    orders = {one("print(list({'a', 'b', 'c', 'd', 'e', 'f'}))").output for _ in range(2)}
    assert len(orders) == 1


def test_a_lost_worker_costs_nobody_else(workers_alive, caplog):
    """The worker is killed from outside, as by the kernel when memory runs out: the program is run again."""
    programs = ["import time; time.sleep(1)"] * 2

    def kill_one_worker():
        while len(workers_alive()) < 2 + STRONGEST.namespaces:  # as below: until a program runs
            time.sleep(0.01)
        os.kill(min(workers_alive()), 9)

    thread = threading.Thread(target=kill_one_worker)
    thread.start()
    with caplog.at_level(logging.WARNING, logger="eval.sandbox.pool"):
        outcomes = run_programs(programs, workers=1, layers=STRONGEST)
    thread.join()
    assert [outcome.passed for outcome in outcomes] == [True] * 2
    assert "lost a program" in caplog.text
    assert not workers_alive()


def test_a_worker_lost_between_two_programs_is_replaced(workers_alive):
    with sandbox._Worker(STRONGEST, 0, 1024) as worker:
        assert worker.run("pass", 5.0).passed
        for process in workers_alive():
            os.kill(process, 9)
        while workers_alive():
            time.sleep(0.01)
        with pytest.raises(sandbox._Lost):
            worker.run("pass", 5.0)
        assert worker.run("pass", 5.0).passed


def test_right_programs_are_no_failures_where_everything_is_killed(workers_alive):
    """Something kills the sandbox's processes again and again: no verdict would mean anything."""
    done = threading.Event()

    def kill():
        while not done.wait(0.25):
            for process in workers_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, 9)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with pytest.raises(SandboxError, match="harmless programs, too|worker has ended|killed"):
            run_programs(["import time; time.sleep(0.6)"] * 2, workers=1, layers=STRONGEST)
    finally:
        done.set()
        thread.join()


def test_a_program_that_kills_itself_has_failed(caplog):
    outcomes = run_programs(["import os; os.kill(os.getpid(), 9)", "assert True"], workers=1, layers=STRONGEST)
    assert [outcome.passed for outcome in outcomes] == [False, True]
    assert outcomes[0].detail.startswith("lost 3 times: its process was killed after")


def test_what_a_closed_sandbox_needs(monkeypatch):
    weak = Layers(namespaces=False, filter=True, user=False)
    monkeypatch.setattr(sandbox, "strongest_layers", lambda: weak)
    with pytest.raises(SandboxError, match="does not give it namespaces of its own"):
        run_programs(["assert True"])
    assert required_layers(weak=True) == weak and weak.missing()
    assert not Layers(namespaces=True, filter=True, user=True).missing()


def test_a_library_below_tmp_stays_visible(tmp_path, monkeypatch):
    """An interpreter or environment below /tmp: programs then have another folder of their own."""
    if not STRONGEST.namespaces:
        pytest.skip("no namespaces on this system")
    folder = Path("/tmp") / f"library-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        (folder / "found_here.py").write_text("value = 7")
        visible, library = [*sandbox._visible(), str(folder)], [*sandbox._library(), str(folder)]
        monkeypatch.setattr(sandbox, "_visible", lambda: visible)
        monkeypatch.setattr(sandbox, "_library", lambda: library)
        program = (
            "import found_here, os, tempfile\nassert os.listdir('.') == []\n"
            "assert tempfile.gettempdir() == os.getcwd()\nopen('x', 'w')"
        )
        assert one(program).passed and one(f"open('{folder}/new', 'w')").passed is False
    finally:
        shutil.rmtree(folder)


def test_the_filter_covers_all_that_outlives_a_program_in_the_kernel():
    """Semaphores and message queues of the user, also where the audit hook is taken off."""
    denied = system_calls._DENIED
    assert {"semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv", "msgctl", "shmctl"} <= set(denied)
    if not offered(KINDS["filter only"]):
        pytest.skip("no system-call filter on this system")
    bypass = (
        "import gc\nfor thing in gc.get_objects():\n"
        "    if getattr(thing, '__name__', '') == 'hook': thing.__globals__['_FORBIDDEN'] = ()\n"
    )
    calls = (
        "import ctypes; c = ctypes.CDLL(None)\nassert c.semctl(0, 0, 0) == c.msgctl(0, 0, 0) == c.syscall(475) == -1"
    )
    assert one(bypass + calls, KINDS["filter only"]).passed


def test_after_an_error_no_other_program_is_begun(monkeypatch):
    """While one worker fails, the other has a program under way and a queue of others before it."""
    begun, queues, real = [], [], queue.SimpleQueue

    def recorded():
        queues.append(real())
        return queues[-1]

    def run(worker, program, timeout_s):
        begun.append(program)
        if program == "refused":
            raise RuntimeError("no protection")
        end = time.monotonic() + 60
        while not queues[0].empty() and time.monotonic() < end:
            time.sleep(0.01)
        return Outcome(True, "passed")

    monkeypatch.setattr(queue, "SimpleQueue", recorded)
    monkeypatch.setattr(sandbox._Worker, "run", run)
    with pytest.raises(RuntimeError, match="no protection"):
        run_programs(["under way", "refused", *["pass"] * 30], workers=2, layers=STRONGEST)
    assert sorted(begun) == ["refused", "under way"]


def test_nothing_outlives_a_killed_caller():
    mark = uuid.uuid4().hex
    caller = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from eval.sandbox import pool; pool._START += '  # {mark}'\n"
            "pool.run_programs(['import time; time.sleep(300)'], timeout_s=300)",
        ],
        cwd=Path(sandbox.__file__).parents[2],
    )
    seen: set[int] = set()
    try:
        while len(seen) < 2 + STRONGEST.namespaces:  # the process that waits for the worker inside, worker, program
            seen = marked(mark) - {caller.pid}
            assert caller.poll() is None
            time.sleep(0.05)
    finally:
        caller.kill()
        caller.wait()
    for _ in range(600):
        if not marked(mark):
            return
        time.sleep(0.1)
    pytest.fail("processes of a killed run live on")


def test_the_log_says_what_is_active(caplog):
    with caplog.at_level(logging.INFO, logger="eval.sandbox.pool"):
        run_programs(["pass"])
    assert [record for record in caplog.records if "per program" in record.message and str(STRONGEST) in record.message]


def test_a_protection_that_cannot_be_put_up_is_an_error_and_not_a_score(monkeypatch):
    if STRONGEST.user:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="nothing was run"):
            patch.setattr(sandbox, "FIRST_USER_ID", 65000.5)
            run_programs(["pass"], layers=STRONGEST)
    if STRONGEST.namespaces:
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="nothing was run.*not this time"):
            patch.setattr(
                sandbox,
                "_START",
                "import sys; sys.path.insert(0, {root!r}); from eval.sandbox import kernel\n"
                "def refuse(): raise OSError('not this time')\nkernel.own_mounts_and_ipc = refuse\n"
                "from eval.sandbox.worker import main; main()",
            )
            run_programs(["pass"], layers=Layers(True, False, STRONGEST.user))
        visible = [*sandbox._visible(), "/nowhere/to/be/found"]
        monkeypatch.setattr(sandbox, "_visible", lambda: visible)
        with pytest.raises(RuntimeError, match="No such file"):
            run_programs(["pass"], layers=STRONGEST)
        assert not sandbox.strongest_layers().namespaces  # the next weaker combination that works is taken
