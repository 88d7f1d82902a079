"""Accuracy of every quantized method on the tiny pair, next to ImPart without quantization at the same ratio.

    python benchmarks/quantization_accuracy.py --skills code --ratios 32 64
    python benchmarks/quantization_accuracy.py --out runs/quantization     (all skills; half an hour on one core)

Per skill and ratio: ImPart-Qt and Delta-CoMe with both grids, DARE-Qt with its best bits, BitDelta with and without
trained scales, and sparse ImPart in 16 bit. beta, C and DARE's bits are chosen on the validation items at seed 0; the
table is of the 200 test items, mean over the seeds (masks and calibration text) +- half of the 95 % interval that all
tables have (eval/report/cells.py). Ratios are nominal, codes alone; the true ones, with every byte of the linear
layers, stand beside them, and one line has the compact grid with as many bytes as the paper's takes. A second table has
the output error of every matrix of ImPart-Qt with both grids, from the same sparse deltas. Calibration text is the base
model's kind of text, not the skill's. What is there already is not made again.
"""

import itertools
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as `python benchmarks/quantization_accuracy.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from assets.tiny.pretraining import documents
from eval import tiny
from eval.report.cells import Scored, cell
from eval.report.scored import read_scored
from impart.artifact import is_delta, open_delta
from impart.config import Parser
from impart.errors import InputError, run
from impart.report import table
from quantize import sparse_llama
from quantize.settings import GRIDS
from sparsify import sparsify, sparsify_quant

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "assets" / "tiny" / "base"
RATIOS = {"chat": (32,), "math": (32,), "code": (64,)}  # where the methods differ
ITEMS = 200  # of each split of a skill
CHOICES = tuple(itertools.product((0.6, 0.7, 0.8), (1.0, 0.5)))  # beta, C
CALIBRATION = ("nsamples=64", "seqlen=128", "batch=16")
DISTILLATION = ("nsamples=256", "seqlen=128", "batch=16", "distill_steps=100")


class Runs:
    """Deltas and results of one skill below a folder, made when they are asked for."""

    def __init__(self, folder: Path, skill: str):
        self._folder, self._skill, self._model = folder / skill, skill, ROOT / "assets" / "tiny" / skill
        self._folder.mkdir(parents=True, exist_ok=True)
        self._text = folder / "calibration.jsonl"
        if not self._text.is_file():
            lines = (json.dumps({"text": text}) for text in itertools.islice(documents(12345), 4000))
            self._text.write_text("\n".join(lines) + "\n")

    def sparse(self, name: str, *settings: str) -> Path:
        """A delta of sparsify.py, in 16 bit."""
        return self._made(name, sparsify, (*self._models(), *settings))

    def quantized(self, name: str, grid: str, seed: int, *settings: str) -> Path:
        """A delta of sparsify_quant.py, quantized."""
        sparse = self._made(
            f"{name}_seed{seed}.sparse",
            sparsify_quant,
            (*self._models(), "accounting=paper", f"seed={seed}", *settings),
        )
        return self._quantized(
            f"{name}_{grid}_seed{seed}", "--saved_delta_path", str(sparse), f"grid={grid}", f"seed={seed}", *CALIBRATION
        )

    def bitdelta(self, name: str, seed: int, *settings: str) -> Path:
        return self._quantized(name, "method=bitdelta", f"baseModel={BASE}", f"seed={seed}", *settings)

    def score(self, deltas: Sequence[Path], split: str) -> list[float]:
        """Share of right answers of each delta, in percent."""
        return [one.score for one in self.scored(deltas, split)]

    def scored(self, deltas: Sequence[Path], split: str) -> list[Scored]:
        """The results of each delta, asked for where they are missing."""
        folder = self._folder / "results" / split
        missing = [delta for delta in deltas if not self._result(folder, delta).is_file()]
        if missing:
            tiny.main(
                [
                    *map(str, missing),
                    "--tasks",
                    self._skill,
                    "--split",
                    split,
                    "--backend",
                    "hf",
                    "--results_dir",
                    str(folder),
                    "fp32",
                ]
            )
        return [read_scored(self._result(folder, delta)) for delta in deltas]

    def _result(self, folder: Path, delta: Path) -> Path:
        return folder / delta.name / f"tiny_{self._skill}" / "0.json"

    def _models(self) -> tuple[str, ...]:
        return f"base_model={BASE}", f"ftm_dir={self._model}"

    def _made(self, name: str, script, arguments: Sequence[str]) -> Path:
        path = self._folder / name
        if not is_delta(path):
            script.main([*arguments, f"save_dir={path}", "--threads", "1", "--overwrite"])
        return path

    def _quantized(self, name: str, *arguments: str) -> Path:
        path = self._folder / name
        if not is_delta(path):
            sparse_llama.main(
                [
                    str(self._model),
                    str(self._text),
                    "--save_compressed_delta_dir",
                    str(path),
                    "--threads",
                    "1",
                    "--overwrite",
                    *arguments,
                ]
            )
        return path


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", default="runs/quantization", help="folder of deltas and results")
    parser.add_argument("--skills", nargs="+", default=list(RATIOS), choices=list(RATIOS))
    parser.add_argument("--ratios", nargs="+", type=int, help="default: where the methods differ, by skill")
    parser.add_argument("--seeds", type=int, default=3, help="number of them (default: %(default)s)")
    flags = parser.parse_args(arguments)
    if flags.seeds < 1:
        raise InputError(f"--seeds {flags.seeds} must be at least 1")
    logging.disable(logging.INFO)
    for skill in flags.skills:
        for ratio in flags.ratios or RATIOS[skill]:
            runs, seeds = Runs(Path(flags.out), skill), range(flags.seeds)
            rows = rows_of(runs, ratio, seeds)
            print(f"\n{skill}, nominal ratio {ratio}, {flags.seeds} seeds, {ITEMS} test items", flush=True)
            print(table(rows, ("method", "chosen on validation", "accuracy", "+-", "true ratio")), flush=True)
            print(
                f"\n{skill}, nominal ratio {ratio}: output error of ImPart-Qt against its sparse delta, "
                "mean over the seeds"
            )
            print(table(output_errors(runs, ratio, seeds), ("matrix", *GRIDS)), flush=True)


def rows_of(runs: Runs, ratio: int, seeds: Sequence[int]) -> list[list[str]]:
    """The lines of one table."""
    paper = impart_qt(runs, ratio, "paper", seeds)
    rows = [
        line(runs, "ImPart, 16 bit", *sparse_impart(runs, ratio, seeds)),
        line(runs, "ImPart-Qt, paper", *paper),
        line(runs, "ImPart-Qt, compact", *impart_qt(runs, ratio, "compact", seeds)),
        line(
            runs,
            "ImPart-Qt, compact, as large as paper",
            *impart_qt(runs, round(true_ratio(paper[1]), 1), "compact", seeds, "bytes"),
        ),
    ]
    for grid in GRIDS:
        settings = ("method=deltacome", f"compression_ratio_qt={ratio}")
        rows.append(
            line(
                runs,
                f"Delta-CoMe, {grid}",
                "",
                [runs.quantized(f"deltacome_{ratio}", grid, seed, *settings) for seed in seeds],
            )
        )
        rows.append(line(runs, f"DARE-Qt, {grid}", *dare_qt(runs, ratio, grid, seeds)))
    for title, settings in (("BitDelta", ()), ("BitDelta, trained scales", DISTILLATION)):
        name = f"bitdelta{'_trained' if settings else ''}_{ratio}"
        rows.append(
            line(
                runs,
                title,
                "",
                [
                    runs.bitdelta(f"{name}_seed{seed}", seed, f"compression_ratio_qt={ratio}", *settings)
                    for seed in seeds
                ],
            )
        )
    return rows


def sparse_impart(runs: Runs, ratio: int, seeds: Sequence[int]) -> tuple[str, list[Path]]:
    def delta(beta: float, C: float, seed: int) -> Path:
        return runs.sparse(
            f"impart_{ratio}_{beta}_{C}_seed{seed}",
            f"compression_ratio={ratio}",
            f"preprune_ratio={beta}",
            f"C={C}",
            f"seed={seed}",
        )

    beta, C = best(runs, delta, CHOICES)
    return f"beta {beta}, C {C:g}", [delta(beta, C, seed) for seed in seeds]


def impart_qt(
    runs: Runs, ratio: float, grid: str, seeds: Sequence[int], accounting: str = "paper"
) -> tuple[str, list[Path]]:
    delta = impart_qt_deltas(runs, ratio, grid, accounting)
    beta, C = best(runs, delta, CHOICES)
    return f"beta {beta}, C {C:g}", [delta(beta, C, seed) for seed in seeds]


def impart_qt_deltas(
    runs: Runs, ratio: float, grid: str, accounting: str = "paper"
) -> Callable[[float, float, int], Path]:
    """(beta, C, seed) -> quantized delta."""

    def delta(beta: float, C: float, seed: int) -> Path:
        return runs.quantized(
            f"impart_qt_{ratio}_{beta}_{C}",
            grid,
            seed,
            f"compression_ratio_qt={ratio}",
            f"accounting={accounting}",
            *([f"grid={grid}"] if accounting == "bytes" else []),  # whose bytes are counted; codes are those of both
            f"preprune_ratio={beta}",
            f"C={C}",
        )

    return delta


def output_errors(runs: Runs, ratio: int, seeds: Sequence[int]) -> list[list[str]]:
    """A line per matrix, a column per grid; beta and C are those that the compact grid's validation chose."""
    choice = best(runs, impart_qt_deltas(runs, ratio, "compact"), CHOICES)
    means: dict[str, list[float]] = {}
    for grid in GRIDS:
        delta = impart_qt_deltas(runs, ratio, grid)
        reports = [json.loads((delta(*choice, seed) / "report.json").read_text())["matrices"] for seed in seeds]
        for rows in zip(*reports, strict=True):
            means.setdefault(rows[0]["name"].removesuffix(".weight"), []).append(
                sum(row["error"] for row in rows) / len(rows)
            )
    means["mean"] = [sum(column) / len(column) for column in zip(*means.values(), strict=True)]
    return [[name, *(f"{error:.4f}" for error in errors)] for name, errors in means.items()]


def dare_qt(runs: Runs, ratio: int, grid: str, seeds: Sequence[int]) -> tuple[str, list[Path]]:
    def delta(bits: int, seed: int) -> Path:
        return runs.quantized(
            f"dare_{bits}bit_{ratio}", grid, seed, "method=dare", f"compression_ratio_qt={ratio}", f"bits={bits}"
        )

    (bits,) = best(runs, delta, ((2,), (4,), (8,)))
    return f"{bits} bit", [delta(bits, seed) for seed in seeds]


def best(runs: Runs, delta, choices: Sequence[tuple]) -> tuple:
    """The choice with the best validation score at seed 0 (the first of equals), of those that can meet the ratio."""
    made = {}
    for choice in choices:
        try:
            made[choice] = delta(*choice, 0)
        except InputError as error:
            logging.warning("left out: %s", error)
    scores = runs.score(list(made.values()), "validation")
    return max(zip(made, scores, strict=True), key=lambda pair: pair[1])[0]


def line(runs: Runs, title: str, chosen: str, deltas: Sequence[Path]) -> list[str]:
    """Mean and half of its 95 % interval, by the formula of the tables."""
    found = cell(runs.scored(deltas, "test"))
    return [title, chosen, f"{found.mean:.1f}", f"{(found.high - found.low) / 2:.1f}", f"{true_ratio(deltas):.1f}"]


def true_ratio(deltas: Sequence[Path]) -> float:
    """Mean ratio of the linear layers, every byte counted."""
    return sum(open_delta(delta).sizes().linear_ratio for delta in deltas) / len(deltas)


if __name__ == "__main__":
    run(main)
