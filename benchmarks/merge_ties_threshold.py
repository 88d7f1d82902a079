"""The TIES threshold of one tensor by two histograms against `kthvalue`, and TIES as a whole against the plain way.

    python benchmarks/merge_ties_threshold.py
    python benchmarks/merge_ties_threshold.py --size 2048 --models 5 --device cuda

Three models of one bf16 matrix; the deltas are their float32 differences to a common base. The plain way is that of the
authors of TIES and of ImPart: kthvalue for the mask, then elect and merge on stacked float32 tensors. Thresholds must
be equal to the bit; the merged deltas must agree to rounding.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # run as `python benchmarks/merge_ties_threshold.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor

from impart.device import use_device
from impart.report import table
from merge.methods import Method, merged_delta, trim_to
from merge.thresholds import trim_threshold, trimmed_count


def main() -> None:
    flags = parser().parse_args()
    device = use_device(flags.device, flags.threads)
    deltas = make_deltas(flags.size, flags.models, device)
    trims = [float(text) for text in flags.trims.split(",")]
    rows = []
    for trim in trims:
        ours, ours_seconds = timed(lambda trim=trim: [trim_threshold(delta, trim) for delta in deltas], flags.repeats)
        theirs, theirs_seconds = timed(lambda trim=trim: [kth(delta, trim) for delta in deltas], flags.repeats)
        if ours != theirs:
            sys.exit(f"trim {trim}: thresholds {ours} differ from kthvalue's {theirs}")
        rows.append([f"threshold, trim {trim:g}", f"{theirs_seconds:.3f}", f"{ours_seconds:.3f}",
                     f"{theirs_seconds / ours_seconds:.1f}x"])
    trim = trims[-1]
    ours, ours_seconds = timed(lambda: streamed_ties(deltas, trim), flags.repeats)
    theirs, theirs_seconds = timed(lambda: plain_ties(torch.stack(deltas), trim), flags.repeats)
    gap = float((ours - theirs).abs().max())
    if gap > 1e-6:
        sys.exit(f"the merged deltas differ by {gap}")
    rows.append([f"all of TIES, trim {trim:g}", f"{theirs_seconds:.3f}", f"{ours_seconds:.3f}",
                 f"{theirs_seconds / ours_seconds:.1f}x"])
    print(f"{flags.models} deltas of {flags.size} x {flags.size}, {device}, {torch.get_num_threads()} threads, seconds "
          f"(fastest of {flags.repeats})")
    print(table(rows, ("", "kthvalue", "histograms", "speed-up")))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=5120)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--trims", default="0.2,0.4,0.8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def make_deltas(size: int, models: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(size, size, generator=generator) * 0.02).to(torch.bfloat16).float()
    tuned = [(base + torch.randn(size, size, generator=generator) * 1e-3).to(torch.bfloat16) for _ in range(models)]
    return [(model.float() - base).to(device) for model in tuned]


def kth(delta: Tensor, trim: float) -> float:
    return float(delta.abs().flatten().kthvalue(trimmed_count(delta.numel(), trim) + 1).values)


def streamed_ties(deltas: list[Tensor], trim: float) -> Tensor:
    trimmed = [trim_to(delta, trim_threshold(delta, trim)) for delta in deltas]
    return merged_delta(Method("ties", 1.0, trim), trimmed)


def plain_ties(stacked: Tensor, trim: float) -> Tensor:
    flat = stacked.flatten(1)  # (models, entries)
    kth = flat.abs().kthvalue(trimmed_count(flat.shape[1], trim) + 1, dim=1, keepdim=True).values
    flat = flat * (flat.abs() >= kth)
    sign = flat.sum(dim=0).sign()
    agreeing = torch.where(sign > 0, flat > 0, flat < 0) & (sign != 0)
    mean = (flat * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
    return mean.view(stacked.shape[1:])


def timed(work: Callable, repeats: int) -> tuple[object, float]:
    """The result and the fastest of `repeats` runs, which other processes disturb least."""
    best = float("inf")
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return result, best


if __name__ == "__main__":
    main()
