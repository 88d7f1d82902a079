"""What a run tells: progress with rate and remaining time, and a report.json beside every result."""

import importlib.metadata
import json
import logging
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from impart.files import write_atomically

Item = TypeVar("Item")
log = logging.getLogger("impart")

PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal, and before the first estimate
BAR_WITHOUT_ESTIMATE = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}]"


def start_logging(quiet: bool = False, verbose: bool = False) -> None:
    """Plain messages on stderr, which keeps stdout for results; `quiet`: warnings alone, `verbose`: libraries' too."""
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger().setLevel(level)
    for noisy in () if verbose else ("httpx", "httpx2", "huggingface_hub", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def progress(items: Sequence[Item], *, what: str, unit: str = "matrix") -> Iterator[Item]:
    """The items, with a bar on a terminal and a line every ten seconds elsewhere; neither where a run is quiet.

    The first ten seconds go by without an estimate, and do not count in the later ones: most of them is the start.
    """
    if not log.isEnabledFor(logging.INFO):
        yield from items
        return
    if sys.stderr.isatty():
        yield from _with_bar(items, what, unit)
        return
    last, first = time.monotonic(), None
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last < PLAIN_SECONDS or done == len(items):
            continue
        last = now
        if first is None:
            first = (now, done)
            log.info("%s: %d of %d", what, done, len(items))
        else:
            rate = (done - first[1]) / (now - first[0])
            left = (len(items) - done) / rate
            log.info("%s: %d of %d, %.2f %s/s, %.0f s left", what, done, len(items), rate, unit, left)


def _with_bar(items: Sequence[Item], what: str, unit: str) -> Iterator[Item]:
    with tqdm(items, desc=what, unit=unit, bar_format=BAR_WITHOUT_ESTIMATE) as bar:
        started = time.monotonic()
        for item in bar:
            yield item
            if time.monotonic() - started >= PLAIN_SECONDS:
                bar.bar_format = None


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "safetensors", "numpy", "scipy", "zstandard"):
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
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    if found:  # Linux' ru_maxrss would start from the size of the process that made this one
        return int(found[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


class Report:
    """Settings, versions, time and memory of one run, and its per-matrix rows."""

    def __init__(self, settings: dict[str, Any]):
        self._settings, self._started = settings, time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}

    def write(self, file: Path) -> None:
        content = {
            "settings": self._settings,
            **self.facts,
            "versions": versions(),
            "git_commit": git_commit(),
            "device": _device_name(),
            "seconds": round(time.monotonic() - self._started, 3),
            "peak_memory_mib": round(peak_memory_mib(), 1),
            "matrices": self.rows,
        }
        write_atomically(file, (json.dumps(content, indent=2, default=str) + "\n").encode())


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """Aligned plain-text columns: the first to the left, the others to the right."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
