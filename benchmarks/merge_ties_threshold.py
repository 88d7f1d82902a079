"""The TIES threshold of one tensor by two histograms against `kthvalue`, and TIES as a whole against the plain way.

    python benchmarks/merge_ties_threshold.py
    python benchmarks/merge_ties_threshold.py --size 2048 --models 5 --device cuda

Three models of one bf16 matrix; the deltas are their float32 differences to a common base. The plain way is that of the
authors of TIES and of ImPart: kthvalue for the mask, then elect and merge on stacked float32 tensors. Thresholds must
be equal to the bit; the merged deltas must agree to rounding. Both ways run once per round, in turn.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as `python benchmarks/merge_ties_threshold.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from benchmarks.side_by_side import machine, timed
from impart.config import Parser
from impart.device import use_device
from impart.errors import run
from impart.report import table
from merge.methods.ties_merging import Ties
from merge.sums import trim_to
from merge.thresholds import trim_threshold, trimmed_count


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--size", type=int, default=5120, help="rows and columns (default: %(default)s)")
    parser.add_argument("--models", type=int, default=3, help="deltas to merge (default: %(default)s)")
    parser.add_argument("--trims", default="0.2,0.4,0.8", help="comma-separated trim ratios (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often every way runs (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, 0 for all cores (default: %(default)s)")
    flags = parser.parse_args(arguments)
    device, trims = use_device(flags.device, flags.threads), [float(text) for text in flags.trims.split(",")]
    deltas = make_deltas(flags.size, flags.models, device)
    rows = []
    for trim in trims:
        plain, ours = partial(kthvalues, deltas, trim), partial(thresholds, deltas, trim)
        if plain() != ours():
            sys.exit(f"trim {trim}: thresholds {ours()} differ from kthvalue's {plain()}")
        rows.append(compared(f"threshold, trim {trim:g}", plain, ours, flags.rounds, device))
    plain, ours = partial(plain_ties, torch.stack(deltas), trims[-1]), partial(streamed_ties, deltas, trims[-1])
    gap = float((ours() - plain()).abs().max())
    if gap > 1e-6:
        sys.exit(f"the merged deltas differ by {gap}")
    rows.append(compared(f"all of TIES, trim {trims[-1]:g}", plain, ours, flags.rounds, device))
    print(
        f"{machine(device)}; {flags.models} deltas of {flags.size} x {flags.size}, {flags.rounds} rounds, "
        "median seconds"
    )
    print(table(rows, ("", "kthvalue", "histograms", "speed-up")))


def compared(what: str, plain: Callable, ours: Callable, rounds: int, device: torch.device) -> tuple[str, ...]:
    """A line of the table."""
    timings = timed({"plain": plain, "ours": ours}, rounds, device)
    return (what, f"{timings['plain'].median:.3f}", f"{timings['ours'].median:.3f}", f"{timings['ours'].speedup:.1f}x")


def make_deltas(size: int, models: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(size, size, generator=generator) * 0.02).to(torch.bfloat16).float()
    tuned = [(base + torch.randn(size, size, generator=generator) * 1e-3).to(torch.bfloat16) for _ in range(models)]
    return [(model.float() - base).to(device) for model in tuned]


def kthvalues(deltas: Sequence[Tensor], trim: float) -> list[float]:
    return [float(delta.abs().flatten().kthvalue(trimmed_count(delta.numel(), trim) + 1).values) for delta in deltas]


def thresholds(deltas: Sequence[Tensor], trim: float) -> list[float]:
    return [trim_threshold(delta, trim) for delta in deltas]


def streamed_ties(deltas: Sequence[Tensor], trim: float) -> Tensor:
    trimmed = [trim_to(delta, threshold) for delta, threshold in zip(deltas, thresholds(deltas, trim), strict=True)]
    return Ties(trim, 1.0).merged_delta(trimmed)


def plain_ties(stacked: Tensor, trim: float) -> Tensor:
    flat = stacked.flatten(1)  # (models, entries)
    kth = flat.abs().kthvalue(trimmed_count(flat.shape[1], trim) + 1, dim=1, keepdim=True).values
    flat = flat * (flat.abs() >= kth)
    sign = flat.sum(dim=0).sign()
    agreeing = torch.where(sign > 0, flat > 0, flat < 0) & (sign != 0)
    mean = (flat * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
    return mean.view(stacked.shape[1:])


if __name__ == "__main__":
    run(main)
