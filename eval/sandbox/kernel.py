"""Namespaces of the Linux kernel, which hide the file system, the network and all other processes.

Standard library only, because this runs in the small interpreter that `eval/sandbox/worker.py` is. Every function
raises OSError where the kernel refuses; the caller then tries with fewer protections.
"""

import ctypes
import functools
import os
import platform
import re
import struct
from collections.abc import Sequence
from pathlib import Path

# Of <linux/sched.h>, <linux/mount.h> and <linux/prctl.h>.
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments) -> int:
    """A function of the C library; OSError with its errno where it returns a negative number."""
    result = getattr(_libc(), name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _mount(source: str, target: str | Path, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    call("mount", encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])


def die_with_parent() -> None:
    """This process is killed when the one that forked it ends."""
    call("prctl", PR_SET_PDEATHSIG, 9, 0, 0, 0)


def enter_namespaces(root: Path, visible: Sequence[Path], folder: Path) -> None:
    """Own user (unless root), mount, network, ipc and host-name namespaces whose only files are `visible`, read-only.

    `root` is an existing empty folder; it becomes `/` for this process alone and stays empty for everybody else.
    `folder`: one that will be there, empty, for `empty_folder`.
    """
    user, group, flags = os.getuid(), os.getgid(), CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if user:
        call("unshare", CLONE_NEWUSER | flags)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    else:
        call("unshare", flags)
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for path in visible:
        _show(path, root)
    for name in (folder.relative_to("/"), "old"):
        (root / name).mkdir()
    os.chdir(root)
    call("pivot_root", b".", b"old")
    os.chdir("/")
    call("umount2", b"/old", MNT_DETACH)
    os.rmdir("/old")
    _mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _show(path: Path, root: Path) -> None:
    """Binds the file or folder `path` to the same place below `root`, read-only with all that is mounted in it.

    A device can still be written to, but its mode and times belong to the machine and cannot be changed.
    """
    target = root / path.relative_to("/")
    if path.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(path), target, None, MS_BIND | MS_REC)
    _make_read_only(target, MS_NOSUID if path.is_char_device() else MS_NOSUID | MS_NODEV)


def _make_read_only(target: Path, flags: int) -> None:
    """mount_setattr covers submounts (Linux 5.12); before that the top mount alone, keeping its locked flags."""
    attributes = struct.pack("QQQQ", MS_RDONLY | flags, 0, 0, 0)  # the MOUNT_ATTR_ values are the same
    try:
        call(
            "syscall",
            ctypes.c_long(442),
            ctypes.c_int(-100),
            os.fsencode(target),
            ctypes.c_uint(0x8000),
            attributes,
            ctypes.c_size_t(len(attributes)),
        )
    except OSError:
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | 0x400 | 0x800 | 0x1000)
        _mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def own_process_tree() -> None:
    """The next child is process 1 of a new pid namespace: it sees only its own children, and they end with it."""
    call("unshare", CLONE_NEWPID)


def counts_processes_by_namespace() -> bool:
    """Whether a user's processes in a user namespace are counted apart from all others of his (Linux 5.14)."""
    return [int(number) for number in re.findall(r"\d+", platform.release())[:2]] >= [5, 14]


def own_mounts_and_ipc() -> None:
    """What is mounted from here on, and shared memory and the like, ends with this process and its children."""
    call("unshare", CLONE_NEWNS | CLONE_NEWIPC)


def empty_folder(folder: str, megabytes: int) -> None:
    """A new memory file system on `folder`, in place of the one that an earlier call has put there."""
    if os.path.ismount(folder):
        call("umount2", os.fsencode(folder), MNT_DETACH)
    _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={megabytes}m,nr_inodes=4096")


def drop_capabilities() -> None:
    """Gives up every privilege for good: executing a file brings none back (no_new_privs).

    Also not dumpable: otherwise a crash would start the system's collector of core dumps, whatever RLIMIT_CORE says.
    """
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    call("capset", header, nothing)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
