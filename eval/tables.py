"""Tables and figures from the results that the benchmark scripts wrote; nothing else reads them.

    python eval/tables.py results
    python eval/tables.py runs/quickstart/results --figure runs/quickstart/accuracy.png --csv runs/quickstart/accuracy.csv

Prints one Markdown table per benchmark: a line per method (with the settings in which its runs differ), a column per
compression ratio; a cell is the mean over seeds with its 95 % interval.
"""

import csv
import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as `python eval/tables.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.results import read_result, wilson_interval
from impart.config import Parser
from impart.errors import InputError, run

METHOD_NAMES = {"impart": "ImPart", "dare": "DARE", "lowrank": "LowRank", "svd": "SVD"}
RATIO_KEYS = ("compression_ratio_qt", "compression_ratio")


@dataclass(frozen=True)
class Scored:
    """One result file: a model on a benchmark, and per item whether it was right."""

    benchmark: str
    model: str
    method: str | None               # None: a whole checkpoint
    ratio: float | None              # nominal
    settings: tuple[tuple[str, str], ...]
    score: float
    byte_ratio: float | None         # of the linear layers, true
    correct: tuple[float, ...]


@dataclass(frozen=True)
class Cell:
    """The runs of one method at one ratio, which differ in their seed."""

    mean: float
    low: float
    high: float
    seeds: int
    byte_ratio: float | None


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("results", type=Path, help="folder with <model>/<benchmark>/<seed>.json")
    parser.add_argument("--figure", type=Path, help="also draw accuracy against compression ratio (.png, .svg or .pdf)")
    parser.add_argument("--csv", type=Path, help="also write every cell as a line")
    flags = parser.parse_args(arguments)
    scored = read_results(flags.results)
    if flags.figure and flags.figure.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--figure {flags.figure}: the name must end in .png, .svg or .pdf")
    grids = {benchmark: grid([one for one in scored if one.benchmark == benchmark])
             for benchmark in sorted({one.benchmark for one in scored})}
    print("\n\n".join(markdown(benchmark, *cells) for benchmark, cells in grids.items()))
    if flags.csv:
        write_csv(flags.csv, grids)
    if flags.figure:
        draw(flags.figure, grids)


def read_results(folder: Path) -> list[Scored]:
    """Every result below `folder`; InputError when there is none."""
    files = sorted(folder.glob("*/*/*.json"))
    if not files:
        raise InputError(f"no results in {str(folder)!r}; the benchmark scripts write them as "
                         "<model>/<benchmark>/<seed>.json")
    return [_scored(file, read_result(file)) for file in files]


def grid(scored: Sequence[Scored]) -> tuple[dict[str, Cell], dict[str, dict[float, Cell]]]:
    """Whole checkpoints by name, and label -> ratio -> cell; a label has only the settings that tell methods apart."""
    whole, groups = defaultdict(list), defaultdict(list)
    for one in scored:
        if one.method is None:
            whole[one.model].append(one)
        else:
            groups[one.method, one.settings, one.ratio].append(one)
    variants = defaultdict(set)
    for method, settings, _ in groups:
        variants[method].add(settings)
    rows: dict[str, dict[float, Cell]] = defaultdict(dict)
    for (method, settings, ratio), runs in sorted(groups.items(), key=lambda item: (item[0][0], item[0][2])):
        rows[_label(method, settings, variants[method])][ratio] = cell(runs)
    return {name: cell(runs) for name, runs in sorted(whole.items())}, dict(rows)


def cell(runs: Sequence[Scored]) -> Cell:
    """Mean over runs and a 95 % interval from both sources of chance: which items were asked, which seed was drawn.

    The variances of the item means over n and of the run means over their number are added (what is left over counts
    in both, so the interval errs on the wide side); Wilson's interval at the sample size with that variance follows.
    """
    scores, n = [one.score for one in runs], len(runs[0].correct)
    mean = sum(scores) / len(scores)
    share = mean / 100
    by_item = [sum(marks) / len(runs) for marks in zip(*(one.correct for one in runs), strict=True)]
    variance = _variance(by_item) / max(n, 1) + _variance([score / 100 for score in scores]) / len(runs)
    size = share * (1 - share) / variance if variance > 0 else n
    low, high = wilson_interval(share * size, size)
    ratios = [one.byte_ratio for one in runs if one.byte_ratio is not None]
    return Cell(mean, low, high, len(runs), sum(ratios) / len(ratios) if ratios else None)


def markdown(benchmark: str, whole: Mapping[str, Cell], rows: Mapping[str, Mapping[float, Cell]]) -> str:
    """One benchmark as a Markdown table."""
    ratios = sorted({ratio for row in rows.values() for ratio in row})
    header = [f"{benchmark}, % (95 % interval)", *(f"CR {ratio:g}" for ratio in ratios)] if ratios \
        else [f"{benchmark}, % (95 % interval)", "score"]
    lines = [[f"{name} (whole)", _text(found), *[""] * (len(ratios) - 1)] for name, found in whole.items()]
    lines += [[label, *(_text(row[ratio]) if ratio in row else "not run" for ratio in ratios)]
              for label, row in rows.items()]
    widths = [max(len(line[column]) for line in (header, *lines)) for column in range(len(header))]
    text = ["| " + " | ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)) + " |"
            for line in (header, *lines)]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    seeds = sorted({found.seeds for row in rows.values() for found in row.values()})
    note = f"Mean over {'-'.join(map(str, seeds))} seeds." if seeds else ""
    return "\n".join([*text, *([f"\n{note}"] if note else [])])


def write_csv(file: Path, grids: Mapping) -> None:
    """benchmark, method, nominal and true ratio, mean and interval: one line per cell."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("benchmark", "method", "ratio", "byte_ratio", "mean", "low", "high", "seeds"))
        for benchmark, (whole, rows) in grids.items():
            for label, ratio, found in [*((name, "", one) for name, one in whole.items()),
                                        *((label, ratio, one) for label, row in rows.items()
                                          for ratio, one in row.items())]:
                byte_ratio = "" if found.byte_ratio is None else f"{found.byte_ratio:.3f}"
                writer.writerow((benchmark, label, ratio, byte_ratio, f"{found.mean:.3f}", f"{found.low:.3f}",
                                 f"{found.high:.3f}", found.seeds))


def draw(file: Path, grids: Mapping) -> None:
    """Accuracy against compression ratio, one panel per benchmark, whole checkpoints as horizontal lines."""
    import matplotlib  # kept out of start-up: only --figure needs it
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    plt.rcParams["svg.hashsalt"] = "impart"  # the same bytes every time
    figure, axes = plt.subplots(1, len(grids), figsize=(5.2 * len(grids), 3.8), squeeze=False)
    for panel, (benchmark, (whole, rows)) in zip(axes[0], grids.items(), strict=True):
        for (name, found), dashes in zip(whole.items(), ("--", ":", "-.") * len(whole), strict=False):
            panel.axhline(found.mean, linestyle=dashes, color="0.45", linewidth=1.2, label=f"{name} (whole)")
        for (label, row), marker in zip(rows.items(), "osD^vPX*<>" * len(rows), strict=False):
            ratios, means = list(row), [found.mean for found in row.values()]
            spread = [[found.mean - found.low for found in row.values()], [found.high - found.mean for found in row.values()]]
            panel.errorbar(ratios, means, yerr=spread, marker=marker, capsize=3, label=label)
        ticks = sorted({ratio for row in rows.values() for ratio in row})
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set(title=benchmark, xlabel="nominal compression ratio of the linear layers", ylabel="accuracy, %",
                  ylim=(-3, 103))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)


def _scored(file: Path, result: Mapping) -> Scored:
    delta = result.get("delta") or {}
    settings = delta.get("settings", {})
    ratio = next((settings[key] for key in RATIO_KEYS if settings.get(key) is not None), None)
    rest = tuple(sorted((key, str(value)) for key, value in settings.items()
                        if key not in RATIO_KEYS and value is not None))
    with (file.parent / result["samples"]).open() as stream:
        correct = tuple(float(json.loads(line)["correct"]) for line in stream)
    return Scored(result["benchmark"], result["model"], delta.get("method"), ratio if delta else None, rest,
                  result["score"], delta.get("linear_ratio"), correct)


def _label(method: str, settings: tuple[tuple[str, str], ...], variants: set) -> str:
    differing = {key for variant in variants for key, value in set(variant) ^ set(settings)}
    named = ", ".join(f"{key}={value}" for key, value in settings if key in differing)
    name = METHOD_NAMES.get(method, method)
    return f"{name} ({named})" if named else name


def _text(found: Cell) -> str:
    return f"{found.mean:.1f} ({found.low:.1f}-{found.high:.1f})"


def _variance(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


if __name__ == "__main__":
    run(main)
