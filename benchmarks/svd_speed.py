"""Seconds and errors of `impart.svd.delta_svd` against torch.svd, which the authors' release calls for every matrix.

Every way runs once per round, in turn, on synthetic deltas (power law, bulk, the rounding of bf16 weights). Errors of
s_k are against an fp64 Gram matrix, which is good to 1e-8: the largest |error| / s_k of the values above s_1 / 100, and
the largest |error| / s_1 of all (the last values of a square matrix are rounding themselves). The excess is the
norm of dW - U diag(s) V^T, less that of the best approximation of this rank, over the norm of dW.

    python benchmarks/svd_speed.py
    python benchmarks/svd_speed.py --sizes 1024,2048,4096x1536,4096,5120 --rounds 3 --threads 1
    python benchmarks/svd_speed.py --device cuda --sizes 4096x1536,5120
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as `python benchmarks/svd_speed.py`: import from the repository root, not from benchmarks/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.side_by_side import machine, timed
from benchmarks.synthetic import delta
from impart.config import Parser
from impart.device import use_device
from impart.errors import InputError, run
from impart.report import table
from impart.svd import delta_svd

Triplets = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
LEADING_SHARES = (0.4, 0.2)  # what pre-pruning leaves of a square matrix at beta 0.6 and 0.8
SMALL = 100  # singular values below s_1 / SMALL are compared with s_1, not with themselves


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--sizes", default="1024,2048,4096x1536", help="comma-separated, N or MxN (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often every way runs (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, 0 for all cores (default: %(default)s)")
    flags = parser.parse_args(arguments)
    sizes, device = [size_of(text) for text in flags.sizes.split(",")], use_device(flags.device, flags.threads)
    rows = [row for m, n in sizes for row in compared(delta(m, n).to(device), flags.rounds)]
    print(f"{machine(device)}; {flags.rounds} rounds")
    print(table(rows, ("matrix, way", "seconds (median)", "speed-up", "error / s_k", "error / s_1", "excess")))


def size_of(text: str) -> tuple[int, int]:
    """(m, n) of `N` or `MxN`."""
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--sizes: {text!r} is neither N nor MxN, like 2048 or 4096x1536")
    return int(parts[0]), int(parts[-1])


def compared(dW: torch.Tensor, rounds: int) -> list[tuple[str, ...]]:
    """Rows of one matrix (m, n)."""
    m, n = dW.shape
    N = min(m, n)
    ways: dict[str, Callable[[], Triplets]] = {"torch.svd": partial(torch.svd, dW), "all": partial(delta_svd, dW)}
    ways |= {f"leading {share:.0%}": partial(delta_svd, dW, max(1, int(share * N))) for share in LEADING_SHARES}
    timings, sigma = timed(ways, rounds, dW.device), reference_values(dW)
    rows = []
    for name, timing in timings.items():
        rows.append(
            (
                f"{m} x {n}, {name}",
                f"{timing.median:.3f}",
                f"{timing.speedup:.1f}x",
                *(f"{error:.0e}" for error in errors(dW, ways[name](), sigma)),
            )
        )
    return rows


def reference_values(dW: torch.Tensor) -> torch.Tensor:
    """Singular values (N,) in fp64, descending."""
    A = (dW.T if len(dW) < dW.shape[1] else dW).double()
    return torch.linalg.eigvalsh(A.T @ A).clamp(min=0).sqrt().flip(0)


def errors(dW: torch.Tensor, triplets: Triplets, sigma: torch.Tensor) -> tuple[float, float, float]:
    """Of the singular values, relative to themselves and to the first; of the approximation, over the best one's."""
    U, s, V = (factor.double() for factor in triplets)
    known = sigma[: len(s)]
    error = (s - known).abs()
    residual = torch.linalg.norm(dW.double() - (U * s) @ V.T)
    best = torch.linalg.norm(sigma[len(s) :])
    return (
        float((error / known)[known > sigma[0] / SMALL].max()),
        float(error.max() / sigma[0]),
        float((residual - best) / torch.linalg.norm(sigma)),
    )


if __name__ == "__main__":
    run(main)
