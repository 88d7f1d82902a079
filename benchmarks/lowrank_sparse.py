"""LowRank+Sparse and ImPart by rules from the spectrum alone, against grids of their settings on validation items.

    python benchmarks/lowrank_sparse.py assets/tiny/base assets/tiny/chat chat --ratios 16 32
    python benchmarks/lowrank_sparse.py assets/small/models/base assets/small/models/chat chat --parts shares

Per ratio, the held-out loss of the task's validation items in nats per token, mean over mask seeds, the share of
fine-tuning's gain that is kept, and the ratio of the linear layers with every byte, headers included. Parts: `shares`
(head, tail_scale and head_bits in codes), `values` (the same in 16 bit), `impart` (beta and C), `budgets` (bytes of one
total for the model by several rules). Nothing is written but the table.
"""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path

if not __package__:  # run as `python benchmarks/lowrank_sparse.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import safetensors.torch
import torch
from torch import Tensor

from eval.engine.likelihood import completion_losses, example
from eval.scoring.tiny import SCORERS
from impart.architecture import linear_names
from impart.checkpoint import open_checkpoint
from impart.config import Parser
from impart.encodings.encoded import Encoded, Triplets
from impart.errors import InputError, run
from impart.method import DenseMatrix, FactoredMatrix, Method
from impart.pretrained import load_model
from impart.report import table
from impart.svd import delta_svd
from impart.tokenizer import load_tokenizer
from quantize.methods.lowrank_sparse import LowRankSigns, LowRankSignsOfModel
from sparsify.methods.impart import ImPart
from sparsify.methods.impart_auto import ImPartAuto
from sparsify.methods.lowrank_sparse import LowRankSparse

ROOT = Path(__file__).resolve().parents[1]
BATCH = 16
Row = tuple[str, Method]


class Known:
    """The delta of one matrix with its SVD, computed once."""

    def __init__(self, name: str, W: Tensor, dW: Tensor):
        self.name, self.W, self._dense = name, W, DenseMatrix(name, dW)
        self._factored = FactoredMatrix(name, delta_svd(dW))

    @property
    def shape(self) -> tuple[int, int]:
        return self._dense.shape

    def dense(self) -> Tensor:
        return self._dense.dense()

    def triplets(self, rank: int) -> Triplets | None:
        return self._factored.triplets(rank)


class KnownPair:
    """Both models' linear weights, the fine-tuned model, and gold completions of a task's validation items."""

    def __init__(self, base: str, finetuned: str, task: str, items: int):
        base_weights, tuned = open_checkpoint(base), open_checkpoint(finetuned)
        self.matrices = linear_names(tuned)
        self._known = {name: self._read(base_weights.tensor(name), tuned.tensor(name), name) for name in self.matrices}
        dtype, tokenizer = tuned.model_dtype(), load_tokenizer(tuned.path, tuned.source)
        lines = (ROOT / "assets" / "tiny" / "data" / f"{task}_validation.jsonl").read_text().splitlines()[:items]
        rows = [json.loads(line) for line in lines]
        self._examples = [example(tokenizer, row["prompt"], row["completion"]) for row in rows]
        self._model = load_model(base_weights.path, base_weights.source, dtype=dtype).eval()
        self.base_loss = self.loss()
        self._model = load_model(tuned.path, tuned.source, dtype=dtype).eval()
        self.tuned_loss = self.loss()

    def matrix(self, name: str) -> Known:
        return self._known[name]

    def shape(self, name: str) -> tuple[int, int]:
        return self._known[name].shape

    def tensor(self, name: str) -> Tensor:
        """The base's weight."""
        return self._known[name].W

    @staticmethod
    def _read(W: Tensor, tuned: Tensor, name: str) -> Known:
        return Known(name, W.float(), tuned.float() - W.float())

    def loss(self) -> float:
        """Mean held-out loss of the model as it is."""
        return statistics.fmean(completion_losses(self._model, self._examples, BATCH))

    @torch.no_grad()
    def compressed(self, method: Method, seed: int) -> tuple[float, int]:
        """The loss with every linear weight's delta compressed, and the bytes that are stored."""
        size = 0
        for name in self.matrices:
            encoded = method.encode(self.matrix(name), seed)
            size += stored_bytes(name, encoded)
            self._model.get_parameter(name).copy_(self.tensor(name) + encoded.dense(name))
        return self.loss(), size

    def line(self, title: str, method: Method, seeds: int) -> list[str]:
        """A row of the table."""
        found = [self.compressed(method, seed) for seed in range(seeds if method.seeded else 1)]
        loss, size = (statistics.fmean(column) for column in zip(*found, strict=True))
        dense = 2 * sum(self.tensor(name).numel() for name in self.matrices)
        gain = (self.base_loss - loss) / (self.base_loss - self.tuned_loss)
        return [title, f"{loss:.4f}", f"{100 * gain:.1f} %", f"{dense / size:.1f}"]


class Unweighted:
    """A base all of whose weights have norm 1, for a sum of errors that are not relative to it."""

    def tensor(self, name: str) -> Tensor:
        return torch.ones(1)


def stored_bytes(name: str, encoded: Encoded) -> int:
    """What a matrix takes in a shard, its part of the header included."""
    return len(safetensors.torch.save({f"{name}.{suffix}": tensor for suffix, tensor in encoded.tensors.items()}))


def shares(pair: KnownPair, ratio: float) -> Iterator[Row]:
    """LowRank+Sparse in codes."""
    yield "head and tail_scale auto", LowRankSigns(compression_ratio_qt=ratio)
    for head in (0.0, 0.3, 0.6):
        yield f"head {head}, tail_scale auto", LowRankSigns(compression_ratio_qt=ratio, head=head)
        for a in (0.7, 1.0, 1.3):
            title = f"head {head}, tail_scale {a}"
            yield title, LowRankSigns(compression_ratio_qt=ratio, head=head, tail_scale=a)
    for bits in (2, 4):
        yield f"head and tail_scale auto, {bits} bit", LowRankSigns(compression_ratio_qt=ratio, head_bits=bits)


def values(pair: KnownPair, ratio: float) -> Iterator[Row]:
    """LowRank+Sparse in 16 bit."""
    yield "head and tail_scale auto", LowRankSparse(compression_ratio=ratio)
    for head, a in product((0.0, 0.5, 0.85), (0.5, 0.7, 1.0)):
        title = f"head {head}, tail_scale {a}"
        yield title, LowRankSparse(compression_ratio=ratio, head=head, tail_scale=a)
    yield "head 1", LowRankSparse(compression_ratio=ratio, head=1.0)


def impart(pair: KnownPair, ratio: float) -> Iterator[Row]:
    """ImPart with the paper's grid, and without beta and C."""
    yield "no beta and C", ImPartAuto(compression_ratio=ratio)
    for beta, C in product((0.6, 0.7, 0.8), (0.5, 1.0)):
        yield f"beta {beta}, C {C:g}", ImPart(compression_ratio=ratio, preprune_ratio=beta, C=C)


def budgets(pair: KnownPair, ratio: float) -> Iterator[Row]:
    """LowRank+Sparse in codes, with the bytes of the model divided by several rules."""
    method = LowRankSigns(compression_ratio_qt=ratio)
    yield "each matrix its part", method
    for title, weights in (("expected errors over norm(W)^2", pair), ("expected errors", Unweighted())):
        planned = LowRankSigns(compression_ratio_qt=ratio, budget="model").planned(pair, weights)
        yield title, planned
    for power in (0.25, 0.5):
        yield f"mean dW^2 to the power {power}", by_energy(method, pair, power)


def by_energy(method: LowRankSigns, pair: KnownPair, power: float) -> Method:
    """Bytes per entry as a power of the mean square of the entries of dW."""
    wanted = {name: float(pair.matrix(name).dense().square().mean()) ** power for name in pair.matrices}
    sizes = {name: pair.tensor(name).numel() for name in pair.matrices}
    mean = sum(wanted[name] * size for name, size in sizes.items()) / sum(sizes.values())
    keys = {"compression_ratio_qt": method.compression_ratio_qt, "budget": "model"}
    return LowRankSignsOfModel(**keys, shares={name: value / mean for name, value in wanted.items()})


PARTS: dict[str, Callable[[KnownPair, float], Iterable[Row]]] = {
    part.__name__: part for part in (shares, values, impart, budgets)
}


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("base")
    parser.add_argument("finetuned")
    parser.add_argument("task", choices=tuple(SCORERS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[16, 32])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=2, help="number of mask seeds (default: %(default)s)")
    parser.add_argument("--items", type=int, default=100, help="validation items (default: %(default)s)")
    given = parser.parse_args(arguments)
    if min(given.seeds, given.items) < 1 or min(given.ratios) < 1:
        raise InputError(f"--seeds {given.seeds}, --items {given.items} and each of --ratios must be at least 1")
    pair = KnownPair(given.base, given.finetuned, given.task, given.items)
    print(f"base {pair.base_loss:.4f}, fine-tuned {pair.tuned_loss:.4f}")
    for ratio, part in product(given.ratios, given.parts):
        rows = [pair.line(title, method, given.seeds) for title, method in PARTS[part](pair, ratio)]
        print(f"\n{Path(given.finetuned).name} at {ratio:g}, {part}")
        print(table(rows, (part, "held-out loss", "gain kept", "true ratio")), flush=True)


if __name__ == "__main__":
    run(main)
