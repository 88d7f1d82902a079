"""Timing several ways to do one thing on a machine that does other things too, and the name of that machine."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one way in every round, beside those of the way that it is compared with."""

    seconds: list[float]
    reference: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def speedup(self) -> float:
        """Median over the rounds of the ratio within a round, in which both ways met the same neighbours."""
        return statistics.median(theirs / ours for theirs, ours in zip(self.reference, self.seconds, strict=True))


def timed(ways: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Every way once per round, in turn; the first way is what the others are compared with."""
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            _finish(device)
            started = time.perf_counter()
            work()
            _finish(device)
            seconds[name].append(time.perf_counter() - started)
    reference = next(iter(seconds.values()))
    return {name: Timing(own, reference) for name, own in seconds.items()}


def machine(device: torch.device) -> str:
    """The processor that the numbers belong to, with its threads where it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def cpu_name() -> str:
    """The CPU's name as the kernel tells it, the architecture where it does not."""
    facts = Path("/proc/cpuinfo")
    for line in facts.read_text().splitlines() if facts.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
