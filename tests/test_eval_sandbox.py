"""Every kind of hostile program, run for real, with each combination of protections that this machine offers."""

import contextlib
import logging
import os
import platform
import queue
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eval.sandbox import Layers, Outcome, SandboxError, required_layers, run_programs, system_calls
from eval.sandbox import pool as sandbox
from eval.sandbox.watch import IDLE, PATIENCE, time_left

STRONGEST = sandbox.strongest_layers()
KINDS = {
    "strongest": STRONGEST,
    "filter only": Layers(namespaces=False, filter=True, user=False),
    "namespaces only": Layers(namespaces=True, filter=False, user=STRONGEST.user),
    "audit hook only": Layers(namespaces=False, filter=False, user=False),
}


def offered(layers: Layers) -> bool:
    return not (layers.namespaces and not STRONGEST.namespaces or layers.filter and not STRONGEST.filter)


@pytest.fixture(params=KINDS)
def layers(request) -> Layers:
    if not offered(KINDS[request.param]):
        pytest.skip(f"this system does not offer: {KINDS[request.param]}")
    return KINDS[request.param]


def one(program: str, layers: Layers = STRONGEST, **limits) -> Outcome:
    """The outcome of `program`, between two good programs that must not notice it."""
    before, outcome, after = run_programs(
        ["assert True", program, "assert True"], layers=layers, workers=1, **{"timeout_s": 5.0, **limits}
    )
    assert before.passed and after.passed
    return outcome


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


def test_good_programs_pass_and_keep_their_order(layers):
    programs = [f"assert sum(range({n})) == {n * (n - 1) // 2 + n % 2}" for n in range(20)]
    assert [outcome.passed for outcome in run_programs(programs, layers=layers)] == [n % 2 == 0 for n in range(20)]


def test_nothing_to_run():
    assert run_programs([]) == []


def test_the_reason_of_a_failure_is_one_line():
    assert one("assert 1 == 2, 'not\\nequal'").detail == "failed: AssertionError: not equal"
    assert one("def f(:").detail.startswith("failed: SyntaxError")
    assert one("class E(Exception):\n    def __str__(self): raise ValueError\nraise E()").detail.startswith("failed: E")
    assert len(one("raise ValueError('x' * 10**6)").detail) < 400


LEAVING = [
    "import sys; sys.exit(0)",
    "raise SystemExit",
    "import os; os._exit(0)",
    "quit()",
    "exit(0)",
    "import os, threading; threading.Thread(target=os._exit, args=(0,)).start()\nwhile True: pass",
    "import os; os.abort()",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\nraise ValueError",
    "import os; os.execv('/bin/true', ['true'])",
    "import os; os.close(3); os._exit(0)",
    "import os\nif os.fork() == 0: os._exit(0)\nraise ValueError",
    "import os, time\nif os.fork() != 0: time.sleep(1); raise ValueError",
    "def f(): f()\nimport sys; sys.setrecursionlimit(10**8); f()",
    "import builtins; builtins.AssertionError = SystemExit; assert False",
    "import os; os.write(3, b'passed\\n'); os.write(3, b'0' * 32 + b' passed\\n')",
    "import atexit, os; atexit.register(os._exit, 0); raise ValueError",
    "import sys; sys.excepthook = lambda *a: None; 1 / 0",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "import signal; signal.alarm(1)\nwhile True: pass",
]


def test_leaving_before_the_last_line_never_passes(layers):
    good = ["assert True"] * len(LEAVING)
    outcomes = run_programs([*LEAVING, *good], layers=layers, timeout_s=5.0)
    passed = [program for program, outcome in zip(LEAVING, outcomes, strict=False) if outcome.passed]
    assert not passed and all(outcome.passed for outcome in outcomes[len(LEAVING) :])
    assert all(outcome.detail for outcome in outcomes)


SEND = """
def send(value):
    import os
    for word in (b"passed\\n", b" passed\\n", b"refused: x\\n", b" refused: x\\n"):
        for descriptor in range(3, 9):
            try: os.write(descriptor, value + word)
            except OSError: pass

def search(frame):
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if type(value) is bytes: send(value)
        frame = frame.f_back
"""
FORGERIES = {
    "frames": "import sys\nsearch(sys._getframe())\nraise ValueError",
    "objects": """
import gc
gc.unfreeze()
for thing in gc.get_objects():
    for value in gc.get_referents(thing):
        if type(value) is bytes and 8 < len(value) < 80: send(value)
raise ValueError
""",
    "frames, from another thread": """
import sys, threading
def look():
    while True:
        for frame in sys._current_frames().values(): search(frame)
threading.Thread(target=look, daemon=True).start()
raise ValueError
""",
    "a trace of the caller": """
import sys
def trace(frame, event, argument):
    for name, value in list(frame.f_locals.items()):
        if isinstance(value, bytes): frame.f_locals[name] = b"passed"
    return trace
sys.settrace(trace)
frame = sys._getframe()
while frame: frame.f_trace, frame = trace, frame.f_back
raise ValueError
""",
    "names of the caller": "import sys\nsys._getframe(1).f_globals['_failure'] = lambda e: b'passed'\nraise ValueError",
    "the key's descriptor": "import os\nsend(os.read(4, 99))",
    "a refusal": "send(b'')",
    "readiness": "import os\nos.write(3, b'ready\\n')\nsend(b'')",
}


def test_a_program_cannot_claim_a_verdict_or_end_the_run(layers):
    programs = [*(SEND + text for text in FORGERIES.values()), "assert True"]
    outcomes = run_programs(programs, layers=layers, timeout_s=5.0)
    assert [name for name, outcome in zip(FORGERIES, outcomes, strict=False) if outcome.passed] == []
    assert outcomes[-1].passed


def test_a_program_finds_no_frame_of_the_worker_above_its_own():
    walk = "import sys\nframe = sys._getframe()\nwhile frame: print(frame.f_code.co_name); frame = frame.f_back"
    assert one(walk).output.split() == ["<module>", "_outcome", "run_and_report", "main", "<module>"]


def test_endless_loop_is_ended_by_the_clock(layers):
    assert one("while True: pass", layers, timeout_s=1.0).detail == "timed out after 1 s"
    assert one("import time; time.sleep(1000)", layers, timeout_s=1.0).detail == "timed out after 1 s"
    assert one("try:\n    while True: pass\nexcept BaseException: pass", layers, timeout_s=1.0).passed is False


@pytest.mark.parametrize(
    ("waited", "used", "left"),
    [
        (0.0, 0.0, 2.0),  # seconds by the clock, of the processor, and until to look again, of 2 s
        (0.5, 0.5, 1.5),
        (2.0, 2.0, 0.0),  # computed all the time
        (2.0, 0.0, 0.0),  # waited all the time
        (2.0, 2.0 * IDLE - 1e-6, 0.0),
        (2.0, 2.0 * IDLE + 1e-6, 2.0 - 2.0 * IDLE - 1e-6),  # computes, and has to wait for the processor
        (30.0, 1.0, 1.0),
        (30.0, 1.99, 0.05),  # not asked for more often than this
        (30.0, 2.0, 0.0),
        (2.0 * PATIENCE - 0.5, 1.0, 0.5),
        (2.0 * PATIENCE, 1.0, 0.0),
        (2.0, None, 0.0),  # the system does not say what a process has used
    ],
)
def test_the_time_that_is_left(waited, used, left):
    assert time_left(waited, lambda: used, 2.0) == pytest.approx(left)


def test_a_program_that_has_to_wait_for_the_processor_keeps_its_time(layers):
    """It gets a fifth of it for longer than the limit, as on a busy machine."""
    program = (
        "import time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end:\n"
        "    slice = time.process_time() + 0.005\n    while time.process_time() < slice: pass\n    time.sleep(0.02)"
    )
    if sys.platform == "linux":  # elsewhere only the clock counts
        assert one(program, layers, timeout_s=1.0).passed


def test_standard_input_is_closed(layers):
    assert one("input()", layers).detail.startswith("failed: EOFError")


def test_the_environment_is_not_the_callers(layers, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    program = "import os; print(dict(os.environ)); assert 'sk-secret' not in str(dict(os.environ))"
    outcome = one(program, layers)
    assert outcome.passed, outcome
    assert str(Path.home()) not in outcome.output
    hidden = (
        "try: text = open('/proc/self/environ').read() + open(f'/proc/{__import__(\"os\").getppid()}/environ').read()\n"
        "except OSError: text = ''\nassert 'sk-secret' not in text"
    )
    assert one(hidden, layers).passed


@pytest.fixture
def victim(tmp_path) -> Path:
    """A folder that every user of the machine may read, change and delete, so that only the sandbox protects it."""
    folder = Path(tmp_path / "victim")
    folder.mkdir()
    (folder / "precious.txt").write_text("precious")
    for path in (folder / "precious.txt", folder, *tmp_path.parents[:2], tmp_path):
        if path.owner() == Path(tmp_path).owner() and path.is_relative_to(tmp_path.parent):
            path.chmod(0o777)
    return folder


ATTACKS = [
    "import shutil; shutil.rmtree({folder!r})",
    "import shutil; shutil.rmtree({folder!r}, ignore_errors=True)",
    "import os; os.system('rm -rf {folder}')",
    "import subprocess; subprocess.run(['rm', '-rf', {folder!r}])",
    "import os; os.posix_spawn('/bin/rm', ['rm', '-rf', {folder!r}], {{}})",
    "import os; os.remove({file!r})",
    "import os; os.rename({file!r}, {file!r} + '.gone')",
    "import os; os.truncate({file!r}, 0)",
    "open({file!r}, 'w').write('spoiled')",
    "open({file!r}, 'a').write('spoiled')",
    "import os; os.close(os.open({file!r}, os.O_TRUNC | os.O_RDWR))",
    "import os; os.chmod({folder!r}, 0)",
    "import os; os.symlink('/', {folder!r} + '/link')",
    "import pathlib; [p.unlink() for p in pathlib.Path({folder!r}).iterdir()]",
    "import pathlib; pathlib.Path({folder!r}, 'new').mkdir()",
    "import os, importlib; importlib.reload(os); os.unlink({file!r})",
    "import sqlite3; sqlite3.connect({folder!r} + '/new').execute('create table x (y)')",
    "import shutil, os; shutil.rmtree(os.path.expanduser('~'))\nshutil.rmtree({folder!r})",
]


def test_files_of_the_user_cannot_be_changed(layers, victim):
    file = victim / "precious.txt"
    mode = victim.stat().st_mode
    attacks = [attack.format(folder=str(victim), file=str(file)) for attack in ATTACKS]
    run_programs(attacks, layers=layers, timeout_s=5.0)
    assert file.read_text() == "precious"
    assert [path.name for path in victim.iterdir()] == ["precious.txt"] and victim.stat().st_mode == mode


@pytest.mark.parametrize("library", ["libc.so.6"])
def test_the_kernel_holds_where_python_is_bypassed(library, victim):
    """ctypes calls libc directly; only the kernel can say no, so the audit hook alone is not asked."""
    if platform.system() != "Linux":
        pytest.skip("libc.so.6 is Linux")
    file = victim / "precious.txt"
    attack = (
        f"import ctypes\nlibc = ctypes.CDLL({library!r})\nlibc.unlink({str(file).encode()!r})\n"
        "assert libc.fork() == -1 and libc.socket(2, 1, 0) == -1"
    )
    for layers in (STRONGEST, KINDS["filter only"]):
        if offered(layers) and layers.filter:
            one(attack, layers)
            assert file.read_text() == "precious"
    if STRONGEST.namespaces and STRONGEST.filter:
        assert one(attack).passed  # fork and socket were refused, unlink found nothing


def test_files_of_the_user_cannot_be_read(layers, victim):
    outcome = one(f"print(open({str(victim / 'precious.txt')!r}).read())", layers)
    assert not outcome.passed and "precious" not in outcome.output.replace("precious.txt", "")


def test_only_the_library_is_there():
    if not STRONGEST.namespaces:
        pytest.skip("no namespaces on this system")
    outcome = one(
        "import os; print(sorted(os.listdir('/'))); assert not os.path.exists('/etc')"
        "\nassert not os.path.exists('/proc/self')"
    )
    assert outcome.passed, outcome
    writable = (
        "import os\nfor top, _, _ in os.walk('/'):\n    if top.startswith('/tmp'): continue\n"
        "    assert not os.access(top, os.W_OK), top\n    if top.count('/') > 2: break"
    )
    assert one(writable, timeout_s=20.0).passed


def test_a_private_folder_starts_empty_and_leaves_nothing():
    if not STRONGEST.namespaces:
        pytest.skip("without namespaces nothing may be written at all")
    write = (
        "import os, tempfile\nassert os.listdir('.') == [] == os.listdir(tempfile.gettempdir())\n"
        "open('mark', 'w').write('x')\nopen('/tmp/.mark', 'w').write('x')"
    )
    lock = "import os\nos.chmod('/tmp', 0)"  # works where the program runs as the user that owns the folder
    for layers in (STRONGEST, Layers(True, STRONGEST.filter, False), Layers(True, False, False)):
        outcomes = run_programs([write, lock, write, write], workers=1, layers=layers)
        assert [outcomes[0].passed, outcomes[2].passed, outcomes[3].passed] == [True] * 3, (layers, outcomes)
    assert not Path("/tmp/mark").exists()


def test_no_network(layers):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        outcome = one(f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)", layers)
        assert not outcome.passed
        with pytest.raises(BlockingIOError):  # a connection would be waiting by now
            server.accept()


def test_asyncio_runs(layers):
    """It needs a pair of sockets, which reach nobody else."""
    program = (
        "import asyncio\nasync def add():\n    await asyncio.sleep(0.01)\n"
        "    return await asyncio.to_thread(sum, [1, 2])\nassert asyncio.run(add()) == 3"
    )
    assert one(program, layers).passed
    if layers.filter:
        assert not one("import socket; socket.socketpair(type=socket.SOCK_DGRAM)", layers).passed


def test_no_network_by_a_path(layers, tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()
        outcome = one(f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r})", layers)
        assert not outcome.passed


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen]:
    """A process of this user that echoes lines."""
    echo = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", echo], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert answers(process)
    yield process
    process.kill()
    process.communicate()


def answers(process: subprocess.Popen) -> bool:
    """Whether the process still echoes: a signal sent earlier reaches it before this line does."""
    try:
        process.stdin.write("still here\n")
        return process.stdout.readline() == "still here\n"
    except BrokenPipeError:
        return False


def test_the_parent_and_others_cannot_be_killed(layers, bystander):
    limits = resource.prlimit(bystander.pid, resource.RLIMIT_CPU)
    for target in ("os.getppid()", "-1", str(os.getpid()), str(bystander.pid), "0"):
        outcome = one(f"import os, signal; os.kill({target}, signal.SIGKILL)\nraise ValueError", layers)
        assert not outcome.passed
    one(f"import os, resource; resource.prlimit({bystander.pid}, resource.RLIMIT_CPU, (0, 0))", layers)
    assert answers(bystander) and resource.prlimit(bystander.pid, resource.RLIMIT_CPU) == limits


def test_no_signal_by_a_detour(layers, bystander):
    """The kernel sends one by itself when a pipe has data (F_SETOWN, F_SETSIG): to anybody of the same user."""
    sender = (
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, {target})\n"
        "fcntl.fcntl(r, 10, {signal})\nfcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')"
    )
    for target in (str(bystander.pid), "os.getppid()"):
        for signal in (2, 9):
            one(sender.format(target=target, signal=signal), layers)
    assert answers(bystander)


@pytest.mark.parametrize("user", [True, False])
def test_devices_of_the_machine_cannot_be_changed(user):
    if not STRONGEST.namespaces:
        pytest.skip("no namespaces on this system")
    layers = Layers(True, STRONGEST.filter, user and STRONGEST.user)
    before = os.stat("/dev/null")
    for change in ("os.utime('/dev/null')", f"os.chmod('/dev/null', {before.st_mode & 0o7777})"):
        assert "Read-only file system" in one(f"import os; {change}", layers).detail
    assert os.stat("/dev/null").st_mtime == before.st_mtime
    assert one(
        "assert open('/dev/null', 'w').write('x') == 1 and open('/dev/zero', 'rb').read(1) == bytes(1)", layers
    ).passed


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


def test_memory_is_limited(layers):
    assert one("x = bytearray(10 * 10**9)", layers).detail == "failed: MemoryError"
    assert not one("x = []\nwhile True: x.append(bytearray(10**6))", layers, timeout_s=20.0, memory_mb=256).passed
    assert one("x = bytearray(100 * 10**6)", layers, memory_mb=512).passed


def test_a_huge_file_is_refused():
    outcome = one("import os\nwith open('big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))")
    assert outcome.detail.startswith(("failed: OSError", "failed: PermissionError", "failed: FileNotFoundError"))
    many = "for i in range(10**6): open(f'{i}', 'wb').write(bytes(1 << 20))"
    assert one(many, timeout_s=20.0).detail.startswith(("failed: OSError", "failed: PermissionError"))


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
