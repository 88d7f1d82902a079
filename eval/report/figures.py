"""Figures of scores: against the compression ratio, as the paper draws them. The same numbers give the same bytes."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib

from eval.report.cells import NATS, Cell
from eval.report.paper import BASE, TUNED, Cells, Column, Printed, kept
from impart.errors import InputError

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend has to be chosen first

SUFFIXES = (".png", ".svg", ".pdf")
LINES = ((BASE, "backbone", ":"), (TUNED, "fine-tuned", "--"))  # row of a plan, label, dashes


def check_figure(file: Path) -> None:
    """InputError for a name that says no format."""
    if file.suffix not in SUFFIXES:
        raise InputError(f"figure {file}: the name must end in .png, .svg or .pdf")


def draw_results(
    file: Path, grids: Mapping[str, tuple[Mapping[str, Cell], Mapping[str, Mapping[float, Cell]]]]
) -> None:
    """Score against compression ratio, one panel per benchmark, whole checkpoints as horizontal lines."""
    figure, axes = plt.subplots(1, len(grids), figsize=(5.2 * len(grids), 3.8), squeeze=False)
    for panel, (benchmark, (whole, rows)) in zip(axes[0], grids.items(), strict=True):
        for (name, found), dashes in zip(whole.items(), cycle(("--", ":", "-.")), strict=False):
            panel.axhline(found.mean, linestyle=dashes, color="0.45", linewidth=1.2, label=f"{name} (whole)")
        for (label, row), marker in zip(rows.items(), cycle("osD^vPX*<>"), strict=False):
            _curve(panel, row, marker, label)
        drawn = [found for row in rows.values() for found in row.values()]
        ratios = [ratio for row in rows.values() for ratio in row]
        _finish(panel, benchmark, ratios, unit_of([*whole.values(), *drawn]))
    save(figure, file)


def draw_table(file: Path, printed: Printed, columns: Sequence[Column], cells: Cells) -> None:
    """A table by ratio as curves, one panel per pair and benchmark; the paper's own points without bars."""
    panels = list(dict.fromkeys((column.pair, column.benchmark) for column in columns))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.8), squeeze=False)
    for panel, (pair, benchmark) in zip(axes[0], panels, strict=True):
        own = [column for column in columns if (column.pair, column.benchmark) == (pair, benchmark)]
        as_gain = any(kept(cells, row, column) for row in printed.labels for column in own)
        for (row, label, dashes), share in zip(LINES, (0, 100), strict=True):
            found = next((cells[row, column] for column in own if (row, column) in cells), None)
            if found is not None:
                panel.axhline(
                    share if as_gain else found.mean, linestyle=dashes, color="0.45", linewidth=1.2, label=label
                )
        for (row, label), marker in zip(printed.labels.items(), cycle("osD^"), strict=False):
            curve = {
                float(column.ratio): kept(cells, row, column) or cells[row, column]
                for column in own
                if (row, column) in cells
            }
            colour = _curve(panel, curve, marker, label) if curve else None
            paper = {
                float(column.ratio): printed.scores[row, column] for column in own if (row, column) in printed.scores
            }
            if paper:
                panel.plot(
                    list(paper),
                    list(paper.values()),
                    linestyle=":",
                    marker=marker,
                    markerfacecolor="none",
                    color=colour,
                    label=f"{label}, paper",
                )
        unit = (
            "gain of fine-tuning that is kept, %"
            if as_gain
            else unit_of(cells[row, column] for row in printed.labels for column in own if (row, column) in cells)
        )
        _finish(panel, f"{pair}: {benchmark}", [float(column.ratio) for column in own], unit)
    save(figure, file)


def unit_of(cells: Iterable[Cell]) -> str:
    """What the axis of scores is called."""
    return "loss, nats per token" if any(found.measure == NATS for found in cells) else "score, %"


def save(figure, file: Path) -> None:
    """Writes and closes a figure; without dates, so that equal figures are equal files."""
    plt.rcParams["svg.hashsalt"] = "impart"
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _curve(panel, row: Mapping[float, Cell], marker: str, label: str) -> str:
    means = [found.mean for found in row.values()]
    spread = [
        [max(0.0, found.mean - found.low) for found in row.values()],
        [max(0.0, found.high - found.mean) for found in row.values()],
    ]
    drawn = panel.errorbar(list(row), means, yerr=spread, marker=marker, capsize=3, label=label)
    return drawn.lines[0].get_color()


def _finish(panel, title: str, ratios: Sequence[float], unit: str) -> None:
    ticks = sorted(set(ratios))
    panel.set_xscale("log", base=2)
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set(title=title, xlabel="nominal compression ratio of the linear layers", ylabel=unit)
    if unit.endswith("%"):
        panel.set_ylim(-3, 103)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
