"""Bytes of exact deltas: what `method: lossless` stores, against Zstandard of the weights and of their XOR.

    python benchmarks/lossless.py
    python benchmarks/lossless.py --pair BASE FINETUNED --pair BASE OTHER --changed 0.05

Ratios are of the linear weights' size to what each way stores of them, speeds in bytes of fine-tuned weights a second,
on one thread. `--changed` adds a pair such as steps of reinforcement learning leave: every base weight plus noise of
one size per matrix, so small that after rounding to the base's dtype only that share of the weights has changed.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

if not __package__:  # run as `python benchmarks/lossless.py`: import from the repository root, not from benchmarks/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import zstandard
from torch import Tensor

from benchmarks.side_by_side import machine
from impart.architecture import linear_names
from impart.checkpoint import Checkpoint, open_checkpoint
from impart.config import Parser
from impart.encodings import lossless
from impart.errors import InputError, run
from impart.report import table
from impart.weight_files import tensor_bytes

TINY = Path(__file__).resolve().parents[1] / "assets" / "tiny"
BISECTIONS = 40
WAYS = ("weights", "XOR", "XOR in planes")
COLUMNS = ("pair", "changed", *WAYS, "lossless", "with gaps", "written", "restored")


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--pair", nargs=2, action="append", metavar=("BASE", "FINETUNED"), help="default: the tiny ones"
    )
    parser.add_argument(
        "--changed", type=float, default=0.05, help="share of weights that change (default %(default)s)"
    )
    parser.add_argument("--level", type=int, default=1, help="of Zstandard (default %(default)s)")
    flags = parser.parse_args(arguments)
    if not 0 < flags.changed < 1:
        raise InputError(f"--changed {flags.changed:g} is no share between 0 and 1")
    if not 1 <= flags.level <= 22:
        raise InputError(f"--level {flags.level}: Zstandard has levels 1 to 22")
    torch.set_num_threads(1)
    pairs = flags.pair or [(str(TINY / "base"), str(TINY / skill)) for skill in ("math", "code", "chat")]
    print(machine(torch.device("cpu")))
    rows = []
    for base, tuned in pairs:
        models = open_checkpoint(base), open_checkpoint(tuned)
        rows.append((f"{Path(base).name} -> {Path(tuned).name}", *measured(both(*models), flags.level)))
    for base in dict.fromkeys(base for base, _ in pairs):
        opened, share = open_checkpoint(base), flags.changed
        nudges = ((W, nudged(W, share)) for W in map(opened.tensor, linear_names(opened)))
        rows.append((f"{Path(base).name}, {share:.0%} changed", *measured(nudges, flags.level)))
    print(table(rows, COLUMNS))


def both(base: Checkpoint, tuned: Checkpoint) -> Iterator[tuple[Tensor, Tensor]]:
    """Each linear weight of the two models."""
    for name in linear_names(tuned):
        yield base.tensor(name), tuned.tensor(name)


def nudged(W: Tensor, share: float) -> Tensor:
    """W (m, n) plus noise, rounded to its dtype, that changes about this share of the entries."""
    noise, low, high = torch.randn(W.shape, generator=torch.Generator().manual_seed(0)), 0.0, float(W.abs().max())
    for _ in range(BISECTIONS):
        scale = (low + high) / 2
        moved = float(((W.float() + scale * noise).to(W.dtype) != W).float().mean())
        low, high = (scale, high) if moved < share else (low, scale)
    return (W.float() + high * noise).to(W.dtype)


def measured(weights: Iterable[tuple[Tensor, Tensor]], level: int) -> tuple[str, ...]:
    """The cells of a pair after its name, from its weights."""
    total, sizes, seconds = Counter[str](), Counter[str](), Counter[str]()
    for base, tuned in weights:
        started = time.perf_counter()
        encoded = lossless.write(base, tuned, level)
        written = time.perf_counter()
        restored = encoded.restored("w", base)
        seconds.update(write=written - started, restore=time.perf_counter() - written)
        ours, theirs = (torch.from_numpy(np.frombuffer(tensor_bytes(part), np.uint8)) for part in (base, tuned))
        assert torch.equal(restored.view(torch.uint8).view(-1), theirs), "a weight did not come back"
        xor = ours ^ theirs
        planes = xor.view(-1, tuned.dtype.itemsize).T.contiguous()
        sizes.update({way: _stored(data, level) for way, data in zip(WAYS, (theirs, xor, planes), strict=True)})
        sizes.update({"lossless": encoded.nbytes})
        total.update(bytes=tuned.nbytes, entries=tuned.numel(), changed=encoded.facts["kept"][0], matrices=1)
        total.update(gaps="gaps" in encoded.tensors)
    return (
        f"{total['changed'] / total['entries']:.1%}",
        *(f"{total['bytes'] / size:.2f}" for size in sizes.values()),
        f"{total['gaps']} of {total['matrices']}",
        *(f"{total['bytes'] / spent / 1e6:.0f} MB/s" for spent in seconds.values()),
    )


def _stored(data: Tensor, level: int) -> int:
    return len(zstandard.ZstdCompressor(level=level).compress(tensor_bytes(data)))


if __name__ == "__main__":
    run(main)
