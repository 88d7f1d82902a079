"""A filter of system calls (seccomp) that leaves a program what computing needs and refuses the rest.

Standard library only, because this runs in the small interpreter that `eval/sandbox/worker.py` is.
"""

import ctypes
import functools
import os
import platform
import struct
import sys
from collections.abc import Mapping, Sequence

from eval.sandbox import kernel

# (x86-64, aarch64) numbers; None where an architecture lacks the call. Denied for everybody: a function under test
# needs no other process, no network, no kernel object that outlives it and no say in how the machine runs.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "tkill": (200, 130),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "ioprio_set": (251, 30),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fsconfig": (431, 431),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "iopl": (172, None),
    "ioperm": (173, None),
    "personality": (135, 92),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "modify_ldt": (154, None),
}
# Denied besides where the file system is not hidden: everything that changes a file, a folder or what is known of it.
_CHANGES_FILES: dict[str, tuple[int | None, int | None]] = {
    "openat2": (437, 437),
    "creat": (85, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "utime": (132, None),
    "utimes": (235, None),
    "utimensat": (280, 88),
    "futimesat": (261, None),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "fallocate": (285, 47),
    "file_setattr": (469, 469),
}
_ARGUED: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "socketpair": (53, 199),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "open": (2, None),
    "openat": (257, 56),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "prctl": (157, 167),
}
_FIRST_UNKNOWN = 470  # newer calls than these tables were written for are refused as if the kernel lacked them
# Allowed by argument: threads (clone), signals to oneself, pairs of stream sockets, which asyncio needs and which reach
# nobody else, and of the calls with many purposes only those below. Others
# of fcntl and ioctl send signals to another process (F_SETOWN), lease the files of others or type into a terminal;
# others of prctl let the process outlive its parent.
_FCNTL = (*range(8), 36, 37, 38, 1030, 1032)  # descriptors, flags, locks; F_DUPFD_CLOEXEC, F_GETPIPE_SZ
_IOCTL = (
    *(0x5401, 0x802C542A, 0x5413),  # TCGETS, TCGETS2, TIOCGWINSZ: whether it is a terminal and of what size
    *(0x541B, 0x5421, 0x5450, 0x5451, 0x40049409),  # FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, FICLONE
)
_AF_UNIX, _STREAMS = 1, (0x1, 0x801, 0x80001, 0x80801)  # SOCK_STREAM, with SOCK_NONBLOCK and SOCK_CLOEXEC or without
_PRCTL = (15, 16, 0x53564D41)  # the name of a thread or of a mapping
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE_THREAD, _PR_SET_SECCOMP = 0x00010000, 22
_OWN_PID = 0x7EADBEEF  # stands for the number of the process that the filter is for; no process can have it
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF operations
_ALLOW, _DENY, _NO_SUCH_CALL, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000


def filter_system_calls(read_only: bool) -> None:
    """From here on this process cannot start another, reach a network, signal another or change the system.

    With `read_only` it cannot change the file system either. Threads inherit the filter; nothing can take it off.
    """
    code = filter_code(read_only).replace(struct.pack("I", _OWN_PID), struct.pack("I", os.getpid()))
    buffer = ctypes.create_string_buffer(code)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    kernel.call("prctl", kernel.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    kernel.call("prctl", _PR_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(header)), 0, 0)


@functools.cache  # so that the worker can compile it before it forks
def filter_code(read_only: bool) -> bytes:
    """The filter as the kernel reads it: an array of (operation, jump if true, jump if false, operand).

    _OWN_PID stands where the number of the filtered process belongs. OSError where no filter is written for the system.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES or sys.platform != "linux":
        raise OSError(38, f"no system-call filter is written for {sys.platform} on {machine}")
    column, architecture = _ARCHITECTURES[machine]
    denied = _numbers(_DENIED | _CHANGES_FILES if read_only else _DENIED, column)
    number = _numbers(_ARGUED, column)
    # Words of the call by their offset: 0 its number, 4 the architecture, 16 + 8 i the low half of argument i.
    # A jump counts the instructions that it skips. Under another architecture the numbers would mean other calls.
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":  # the x32 table reaches the same calls by other numbers
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    code += [(_AT_LEAST, 0, 1, _FIRST_UNKNOWN), (_RETURN, 0, 0, _NO_SUCH_CALL)]
    for call in denied.values():
        code += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _DENY)]
    # clone3 has its flags in memory, where a filter cannot look. glibc then falls back to clone.
    code += [(_EQUAL, 0, 1, number["clone3"]), (_RETURN, 0, 0, _NO_SUCH_CALL)]
    code += _unless(number["socketpair"], 0, _EQUAL, [_AF_UNIX]) + _unless(number["socketpair"], 1, _EQUAL, _STREAMS)
    code += _unless(number["clone"], 0, _ANY_BIT, [_CLONE_THREAD])
    code += _unless(number["kill"], 0, _EQUAL, [_OWN_PID]) + _unless(number["tgkill"], 0, _EQUAL, [_OWN_PID])
    code += _unless(number["prlimit64"], 0, _EQUAL, [0, _OWN_PID])
    code += _unless(number["sched_setaffinity"], 0, _EQUAL, [0, _OWN_PID])
    code += _unless(number["fcntl"], 1, _EQUAL, _FCNTL) + _unless(number["ioctl"], 1, _EQUAL, _IOCTL)
    code += _unless(number["prctl"], 0, _EQUAL, _PRCTL)
    if read_only:
        changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
        for name, argument in (("open", 1), ("openat", 2)):
            if name in number:
                code += [
                    (_EQUAL, 0, 4, number[name]),
                    (_LOAD, 0, 0, 16 + 8 * argument),
                    (_ANY_BIT, 0, 1, changing),
                    (_RETURN, 0, 0, _DENY),
                    (_LOAD, 0, 0, 0),
                ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code + [(_RETURN, 0, 0, _ALLOW)])


def _numbers(table: Mapping[str, tuple[int | None, int | None]], column: int) -> dict[str, int]:
    """The calls that an architecture has."""
    return {name: number for name, numbers in table.items() if (number := numbers[column]) is not None}


def _unless(call: int, argument: int, test: int, values: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Denies `call` unless the low word of its argument passes `test` with one of `values`."""
    tests = [(test, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [
        (_EQUAL, 0, len(values) + 3, call),
        (_LOAD, 0, 0, 16 + 8 * argument),
        *tests,
        (_RETURN, 0, 0, _DENY),
        (_LOAD, 0, 0, 0),
    ]
