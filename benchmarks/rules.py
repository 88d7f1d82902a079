"""Settings and budgets of ImPart and LowRank+Sparse by rules, against grids of settings on validation items.

    python benchmarks/rules.py assets/tiny/base assets/tiny/chat chat --ratios 16 32
    python benchmarks/rules.py assets/small/models/base assets/small/models/chat chat --parts shares

Per ratio, the held-out loss of the task's validation items in nats per token, mean over mask seeds, the share of
fine-tuning's gain that is kept, the change of the last layer's output, and the ratio of the linear layers with every
byte, headers included. The output's change needs no labels: it is the mean square over the fine-tuned model's own
answers to the prompts of other items, 1 for the base. After each part, what the least loss and the least change choose.
Parts: `shares` (LowRank+Sparse in codes: head, tail_scale and head_bits), `values` (the same in 16 bit), `weighing`
(the one number of its rule, kappa), `rescaling` (DAREx's q), `impart` (beta and C), `budgets` and `impart_budgets`
(bytes of one total for the model, by several rules).
Nothing is written but the tables.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

if not __package__:  # run as `python benchmarks/rules.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])


from benchmarks.known_pair import KnownPair, Measured
from eval.scoring.tiny import SCORERS
from impart.config import Parser
from impart.errors import InputError, run
from impart.method import Method
from impart.report import table
from quantize.methods.lowrank_sparse import LowRankSigns, LowRankSignsOfModel, squared_norm
from sparsify.methods.darex import DareX
from sparsify.methods.impart import ImPart, ImPartOfModel
from sparsify.methods.impart_auto import ImPartAuto
from sparsify.methods.lowrank_sparse import LowRankSparse

Row = tuple[str, Method]


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


def weighing(pair: KnownPair, ratio: float) -> Iterator[Row]:
    """LowRank+Sparse in codes, by how much what is missing of a delta weighs beside noise."""
    for kappa in (4, 16, 64, 256, 1024):
        weighed = type("Weighed", (LowRankSigns,), {"kappa": kappa})
        yield f"kappa {kappa}", weighed(compression_ratio_qt=ratio)


def impart(pair: KnownPair, ratio: float) -> Iterator[Row]:
    """ImPart with the paper's grid, and without beta and C."""
    yield "no beta and C", ImPartAuto(compression_ratio=ratio)
    for beta, C in product((0.6, 0.7, 0.8), (0.5, 1.0)):
        yield f"beta {beta}, C {C:g}", ImPart(compression_ratio=ratio, preprune_ratio=beta, C=C)


def rescaling(pair: KnownPair, ratio: float) -> Iterator[Row]:
    """DAREx-q, from DARE (q = 1 / CR) up."""
    for factor in (1.0, 1.2, 1.4, 2.0, 4.0):
        yield f"q = {factor:g} / CR", DareX(compression_ratio=ratio, q=factor / ratio)


def budgets(pair: KnownPair, ratio: float) -> Iterator[Row]:
    """LowRank+Sparse in codes, with the bytes of the model divided by several rules."""
    method = LowRankSigns(compression_ratio_qt=ratio, budget="model")
    yield "each matrix its part", replace(method, budget="matrix")
    for title, weight in weights(pair):
        yield title, LowRankSignsOfModel(**vars(method), by_name=method.shares(pair.all, weight))
    for power in (0.25, 0.5):
        yield (
            f"mean dW^2 to the power {power}",
            LowRankSignsOfModel(**vars(method), by_name=by_energy(pair, power)),
        )


def impart_budgets(pair: KnownPair, ratio: float) -> Iterator[Row]:
    """ImPart with the paper's beta and C, with the bytes of the model divided by several rules."""
    method = ImPart(compression_ratio=ratio, preprune_ratio=0.6, C=1.0)
    yield "each matrix its part", method
    for title, weight in weights(pair):
        yield title, ImPartOfModel(method=method, by_name=method.shares(pair.all, weight))
    for power in (0.25, 0.5):
        yield f"mean dW^2 to the power {power}", ImPartOfModel(method=method, by_name=by_energy(pair, power))


def weights(pair: KnownPair) -> Iterator[tuple[str, Callable[[str], float]]]:
    """What the expected errors of matrices are multiplied by, by their names; the first two see no text."""
    yield "expected errors over norm(W)^2", lambda name: 1 / squared_norm(pair.tensor(name))
    yield "expected errors", lambda name: 1.0
    yield "expected errors by information, prompts", pair.information(answers=False).__getitem__
    yield "expected errors by information, answers too", pair.information(answers=True).__getitem__


def by_energy(pair: KnownPair, power: float) -> dict[str, float]:
    """Shares by bytes per entry as a power of the mean square of the entries of dW."""
    wanted = {name: float(pair.matrix(name).dense().square().mean()) ** power for name in pair.matrices}
    sizes = {name: pair.tensor(name).numel() for name in pair.matrices}
    mean = sum(wanted[name] * size for name, size in sizes.items()) / sum(sizes.values())
    return {name: value / mean for name, value in wanted.items()}


PARTS: dict[str, Callable[[KnownPair, float], Iterable[Row]]] = {
    part.__name__: part for part in (shares, values, weighing, rescaling, impart, budgets, impart_budgets)
}


def report(pair: KnownPair, part: str, found: Mapping[str, Measured]) -> str:
    """A part's table, and what the least loss and the least change of the last layer's output choose."""

    def gain(loss: float) -> str:
        return f"{100 * (pair.base_loss - loss) / (pair.base_loss - pair.tuned_loss):.1f} %"

    rows = [
        [title, f"{of.loss:.4f}", gain(of.loss), f"{of.change:.4f}", f"{pair.dense_bytes / of.size:.1f}"]
        for title, of in found.items()
    ]
    lines = [table(rows, (part, "held-out loss", "gain kept", "output change", "true ratio"))]
    for measure in ("loss", "change"):
        best = min(found, key=lambda title: getattr(found[title], measure))
        lines.append(f"least {measure}: {best}, loss {found[best].loss:.4f}, {gain(found[best].loss)}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("base")
    parser.add_argument("finetuned")
    parser.add_argument("task", choices=tuple(SCORERS))
    parser.add_argument("--ratios", nargs="+", type=float, default=[16, 32])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=2, help="number of mask seeds (default: %(default)s)")
    parser.add_argument("--items", type=int, default=100, help="validation items of the loss (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=32, help="other items' prompts, unlabelled (default: %(default)s)")
    given = parser.parse_args(arguments)
    if min(given.seeds, given.items, given.texts) < 1 or min(given.ratios) < 1:
        raise InputError(
            f"--seeds {given.seeds}, --items {given.items}, --texts {given.texts} and each of --ratios must be at "
            "least 1"
        )
    pair = KnownPair(given.base, given.finetuned, given.task, given.items, given.texts)
    print(f"base {pair.base_loss:.4f}, fine-tuned {pair.tuned_loss:.4f}")
    for ratio, part in product(given.ratios, given.parts):
        found = {title: pair.measured(method, given.seeds) for title, method in PARTS[part](pair, ratio)}
        print(f"\n{Path(given.finetuned).name} at {ratio:g}, {part}")
        print(report(pair, part, found), flush=True)


if __name__ == "__main__":
    run(main)
