"""What a step will take: seconds by the coefficients of a device, memory and disk by the shapes of the matrices.

CPU seconds are fitted to measurements on one thread of an x86-64 core with AVX2: SVDs of 1024 to 5120 wide deltas,
masks of 5120 x 2048, one calibrated layer of width 512, and processor time of sparsify, quantize and evaluate on the
tiny pair. The SVD, masks and products of a GPU are those that benchmarks/gpu.md has of an H200; its other coefficients
are estimates from flops and bytes.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from impart import processes
from impart.files import room_below

START = 3.0  # seconds until a script has imported what it needs
DISK_RATE = 1e9  # bytes per second


@dataclass(frozen=True)
class Device:
    """Coefficients of one device. `svd`: seconds per m * n * min(m, n); `flops` per second of calibration."""

    svd: float
    mask: float  # seconds per entry of the factors
    flops: float
    answer_flops: float  # 2 * parameters per generated token
    most_tokens: float  # tokens per second, however small the model
    merge: float  # seconds per parameter


CPU = Device(svd=2.75e-10, mask=4.3e-9, flops=4e10, answer_flops=4e9, most_tokens=1600, merge=3.2e-8)
GPU = Device(svd=8e-13, mask=2.5e-11, flops=3.7e14, answer_flops=6e13, most_tokens=20000, merge=2e-9)


@dataclass(frozen=True)
class Work:
    """One step: the shapes (m, n) of its matrices, and what it does with them."""

    shapes: Collection[tuple[int, int]]
    written: int  # bytes, an upper estimate
    svds: int = 0  # of every matrix
    masked: bool = False
    read: int = 2  # models of 16 bit that are read
    tokens: int = 0  # of calibration
    merged: int = 0  # parameters

    def seconds(self, device: Device) -> float:
        """Expected time on one device."""
        entries = sum(m * n for m, n in self.shapes)
        svds = self.svds * device.svd * sum(m * n * min(m, n) for m, n in self.shapes)
        masks = 2 * device.mask * entries if self.masked else 0.0
        calibration = (6 * entries * self.tokens + 8 * sum(m * n * n for m, n in self.shapes)) / device.flops
        files = (2 * self.read * entries + self.written) / DISK_RATE
        return START + svds + masks + (calibration if self.tokens else 0.0) + device.merge * self.merged + files

    def memory(self) -> int:
        """Bytes beside the interpreter: the largest matrix in fp32 twice, and its Gram matrix in fp64 four times."""
        return max((8 * m * n + 32 * min(m, n) ** 2 * bool(self.svds) for m, n in self.shapes), default=0)


def tell(path: str | Path, work: Work, device: torch.device) -> None:
    """What --dry_run prints of a step, after every check of it; of several processes, the first does."""
    if processes.rank() > 0:
        return
    where, coefficients = ("GPU", GPU) if device.type == "cuda" else ("CPU, one thread", CPU)
    print(
        f"{path}: {len(work.shapes)} matrices; about {duration(work.seconds(coefficients))} ({where}), "
        f"{work.memory() / 1e9:.2f} GB of memory for the largest, up to {work.written / 1e9:.2f} GB of disk "
        f"({room_below(Path(path)) / 1e9:.1f} GB are free); nothing was written"
    )


def duration(spent: float) -> str:
    """Seconds in the unit that a person would say them in."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if spent < most * length:
            return f"{spent / length:.0f} {unit}" if unit == "s" else f"{spent / length:.1f} {unit}"
    return f"{spent / 86400:,.0f} days"
