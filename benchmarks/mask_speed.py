"""Seconds for the masks of one factor against a loop over its columns, as the authors' release draws them.

The loop permutes all rows of a column by torch.randperm and zeroes the first int(m p_k) of them, in a dense 16-bit mask
(m, r). "stored by columns" is the same loop on a mask of bytes whose columns lie together in memory, which is kinder to
the cache than the release is. p_k = (1 - s_k / s_1) gamma (Eq. 7) with singular values that follow a power law and the
gamma of compression ratio 32 at beta 0.6. Every way runs once per round, in turn.

    python benchmarks/mask_speed.py
    python benchmarks/mask_speed.py --sizes 1024x400,5120x2048,13824x2048 --rounds 5 --threads 1
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as `python benchmarks/mask_speed.py`: import from the repository root, not from benchmarks/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch

from benchmarks.side_by_side import machine, timed
from impart.config import Parser
from impart.device import use_device
from impart.errors import InputError, run
from impart.masks import bernoulli_mask, exact_count_mask, keep_thresholds
from impart.report import table

EXPONENT = 0.7  # of the power law
GAMMA = (1 - 1 / 64 - 0.6) / (1 - 0.6)  # (alpha - beta) / (1 - beta) of a square matrix


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--sizes",
        default="1024x400,5120x2048,13824x2048",
        help="comma-separated MxR: rows and columns of a factor (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often every way runs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, 0 for all cores (default: %(default)s)")
    flags = parser.parse_args(arguments)
    sizes, device = [size_of(text) for text in flags.sizes.split(",")], use_device("cpu", flags.threads)
    rows = [row for m, r in sizes for row in compared(m, r, flags.rounds)]
    print(f"{machine(device)}; {flags.rounds} rounds")
    print(table(rows, ("mask, way", "milliseconds (median)", "speed-up", "kept", "asked for")))


def size_of(text: str) -> tuple[int, int]:
    """(m, r) of `MxR`."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--sizes: {text!r} is not of the form MxR, like 5120x2048")
    return int(parts[0]), int(parts[1])


def compared(m: int, r: int, rounds: int) -> list[tuple[str, ...]]:
    """Rows of one factor (m, r)."""
    p = (1 - np.arange(1, r + 1) ** -EXPONENT) * GAMMA
    t, ratios = keep_thresholds(p), p.tolist()
    ways: dict[str, Callable] = {
        "loop over columns": partial(loop_of_the_release, m, ratios),
        "the loop, stored by columns": partial(loop_by_columns, m, ratios),
        "bernoulli_mask": partial(bernoulli_mask, 0, "q_proj", "U", t, m),
        "exact_count_mask": partial(exact_count_mask, 0, "q_proj", "U", t, m),
    }
    timings, asked = timed(ways, rounds, torch.device("cpu")), float(np.mean(1 - p))
    return [
        (
            f"{m} x {r}, {name}",
            f"{timing.median * 1e3:.1f}",
            f"{timing.speedup:.1f}x",
            f"{float(torch.as_tensor(ways[name]()).float().mean()):.4f}",
            f"{asked:.4f}",
        )
        for name, timing in timings.items()
    ]


def loop_of_the_release(m: int, ratios: Sequence[float]) -> torch.Tensor:
    """Mask (m, r) in fp16."""
    mask = torch.ones(m, len(ratios), dtype=torch.float16)
    for k, p in enumerate(ratios):
        mask[torch.randperm(m)[: int(m * p)], k] = 0
    return mask


def loop_by_columns(m: int, ratios: Sequence[float]) -> torch.Tensor:
    """Mask (r, m) in bool."""
    mask = torch.ones(len(ratios), m, dtype=torch.bool)
    for k, p in enumerate(ratios):
        mask[k, torch.randperm(m)[: int(m * p)]] = False
    return mask


if __name__ == "__main__":
    run(main)
