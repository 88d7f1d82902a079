"""The last line where the kernel cannot hide the file system: Python's own audit hook.

It stops what a completion may plausibly try (opening, deleting, connecting, starting processes), not an attacker who
knows CPython; the system-call filter and the limits stand behind it. A hook cannot be removed once it is set.
"""

import os
import sys
from collections.abc import Sequence

_FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.kill",
    "os.killpg",
    "os.startfile",
    "pty.",
    "ctypes.",
    "signal.pthread_kill",
    "ftplib.",
    "urllib.",
    "smtplib.",
    "http.client",
    "syslog.",
    "winreg.",
    "resource.",
    "shutil.chown",
    "fcntl.",
)
_PATHS = {
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.chmod": 1,
    "os.chown": 1,
    "os.truncate": 1,
    "os.utime": 1,
    "os.setxattr": 1,
    "os.removexattr": 1,
    "os.chflags": 1,
    "shutil.rmtree": 1,
    "shutil.move": 2,
    "shutil.copyfile": 2,
    "shutil.copytree": 2,
    "shutil.copymode": 2,
    "shutil.copystat": 2,
    "sqlite3.connect": 1,
    "os.listdir": 0,
    "os.scandir": 0,
}
_AF_UNIX = 1  # pairs of these are what asyncio needs; to connect or bind one is an event of its own, and forbidden
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def forbid(readable: Sequence[str], writable: str) -> None:
    """Sets the hook: only `readable` may be read, only the folder `writable` changed; no process starts, no network."""
    real, start = os.path.realpath, str.startswith
    reads = tuple(real(path).rstrip("/") + "/" for path in (*readable, os.devnull))
    writes = (real(writable) + "/", real(os.devnull) + "/")

    def inside(path, folders: tuple[str, ...]) -> bool:
        if isinstance(path, int) or path is None:  # an open file, or the folder we are in
            return True
        return start(real(os.fsdecode(path)) + "/", folders)

    def hook(event: str, arguments: tuple) -> None:
        if event == "socket.__new__" and arguments[1] == _AF_UNIX:
            return
        if start(event, _FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open":
            path, mode, flags = arguments
            changes = (
                bool(flags & _WRITES) if isinstance(flags, int) else any(letter in (mode or "") for letter in "wax+")
            )
            if not inside(path, writes if changes else reads):
                raise PermissionError(f"opening {path!r} is not allowed here")
        elif event in _PATHS:
            for path in arguments[: max(1, _PATHS[event])]:
                if not inside(path, writes if _PATHS[event] else reads):
                    raise PermissionError(f"{event} of {path!r} is not allowed here")

    sys.addaudithook(hook)
