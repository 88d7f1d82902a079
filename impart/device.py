"""Where the arithmetic runs, and with how many CPU threads."""

import ctypes
import os
import platform

import torch
from threadpoolctl import threadpool_limits

from impart.errors import InputError

MOST_THREADS = 256  # that anyone may ask for, however small the machine


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def return_freed_memory(block: int) -> None:
    """Has glibc give every freed block of this many bytes or more back to the system.

    By itself it raises that size with every large block that is freed, keeps the holes between matrices of different
    shapes, and so holds half as much again as is in use. Of smaller blocks it keeps up to twice as many bytes at the
    end of the heap, as by itself; at its initial 128 KB they would cost new pages as well.
    """
    if platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8  # mallopt's names of them in malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, block)
        libc.mallopt(m_trim_threshold, 2 * block)
        libc.mallopt(m_arena_max, 1)


def use_device(text: str, threads: int = 0, returned_block: int = 1 << 20) -> torch.device:
    """The device of `--device`, with the number of CPU threads fixed to `threads` (0: all cores).

    The threads do not follow OMP_NUM_THREADS: launchers set it by the number of processes, and the last bits of an
    eigendecomposition depend on it. Blocks of memory from `returned_block` bytes on go back to the system once they are
    freed, and cost new pages when the next one is wanted.
    """
    if threads < 0:
        raise InputError(f"--threads {threads} must be 0 (all cores) or more")
    if threads > max(MOST_THREADS, 4 * available_cores()):  # thousands end the process in the thread library
        raise InputError(
            f"--threads {threads} is far more than this machine's {available_cores()} cores; take 0 for all"
        )
    return_freed_memory(returned_block)
    torch.set_num_threads(threads or available_cores())
    threadpool_limits(threads or available_cores(), user_api="blas")
    if text == "auto":
        text = f"cuda:{_local_gpu()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise InputError(f"--device {text!r} is not a device; take auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {text!r}: this project runs on cpu and cuda")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(
            f"--device {text!r}: this machine has {torch.cuda.device_count()} CUDA devices; take auto or cpu"
        )
    return device


def _local_gpu() -> int:
    return int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
