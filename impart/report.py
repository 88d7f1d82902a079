"""What a run tells: progress with rate and remaining time, and a report.json beside every result."""

import importlib.metadata
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from impart.errors import InputError
from impart.files import write_atomically

Item = TypeVar("Item")
log = logging.getLogger("impart")

PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal


def start_logging() -> None:
    """Plain messages on stderr, which keeps stdout for results."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "huggingface_hub", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def progress(items: Sequence[Item], *, what: str, unit: str = "matrix") -> Iterator[Item]:
    """The items, with a bar on a terminal and a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, unit=unit)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS and done + 1 < len(items):
            last, rate = now, (done + 1) / (now - started)
            left = (len(items) - done - 1) / rate
            log.info("%s: %d of %d, %.2f %s/s, %.0f s left", what, done + 1, len(items), rate, unit, left)


def use_device(text: str, threads: int = 0) -> torch.device:
    """The device of `--device`, with the number of CPU threads fixed.

    The threads do not follow OMP_NUM_THREADS: launchers set it by the number of processes, and the last bits of an
    eigendecomposition depend on it.
    """
    count = threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    torch.set_num_threads(count)
    if text == "auto":
        text = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}" if torch.cuda.is_available() \
            else "cpu"
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise InputError(f"--device {text!r} is not a device; take auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {text!r}: this project runs on cpu and cuda")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"--device {text!r}: this machine has {torch.cuda.device_count()} CUDA devices; "
                         "take auto or cpu")
    return device


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "safetensors", "numpy", "scipy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this checkout, with `+changes` when the working tree differs; None outside of git."""
    root = Path(__file__).resolve().parents[1]
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


class Report:
    """Settings, versions, time and memory of one run, and its per-matrix rows."""

    def __init__(self, settings: dict[str, Any]):
        self._settings, self._started, self.rows = settings, time.monotonic(), []
        self.facts: dict[str, Any] = {}

    def write(self, file: Path) -> None:
        content = {"settings": self._settings, **self.facts, "versions": versions(), "git_commit": git_commit(),
                   "device": _device_name(), "seconds": round(time.monotonic() - self._started, 3),
                   "peak_memory_mib": round(peak_memory_mib(), 1), "matrices": self.rows}
        write_atomically(file, (json.dumps(content, indent=2, default=str) + "\n").encode())


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """Aligned plain-text columns: the first to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) if column == 0 else cell.rjust(width)
                               for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in lines)


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
