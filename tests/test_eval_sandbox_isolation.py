"""What hostile programs cannot reach: files, network, processes and devices, with each combination of protections."""

import os
import platform
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandboxed import KINDS, STRONGEST, each_protection, offered, one

from eval.sandbox import Layers, run_programs


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


@each_protection
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


@each_protection
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


@each_protection
def test_no_network(layers):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        outcome = one(f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)", layers)
        assert not outcome.passed
        with pytest.raises(BlockingIOError):  # a connection would be waiting by now
            server.accept()


@each_protection
def test_asyncio_runs(layers):
    """It needs a pair of sockets, which reach nobody else."""
    program = (
        "import asyncio\nasync def add():\n    await asyncio.sleep(0.01)\n"
        "    return await asyncio.to_thread(sum, [1, 2])\nassert asyncio.run(add()) == 3"
    )
    assert one(program, layers).passed
    if layers.filter:
        assert not one("import socket; socket.socketpair(type=socket.SOCK_DGRAM)", layers).passed


@each_protection
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


@each_protection
def test_the_parent_and_others_cannot_be_killed(layers, bystander):
    limits = resource.prlimit(bystander.pid, resource.RLIMIT_CPU)
    for target in ("os.getppid()", "-1", str(os.getpid()), str(bystander.pid), "0"):
        outcome = one(f"import os, signal; os.kill({target}, signal.SIGKILL)\nraise ValueError", layers)
        assert not outcome.passed
    one(f"import os, resource; resource.prlimit({bystander.pid}, resource.RLIMIT_CPU, (0, 0))", layers)
    assert answers(bystander) and resource.prlimit(bystander.pid, resource.RLIMIT_CPU) == limits


@each_protection
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
