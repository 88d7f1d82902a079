"""Scores over the compression ratio, as the paper draws them. The same numbers give the same bytes."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from eval.report.cells import BASE, NATS, TUNED, Cell
from eval.report.conditions import conditions_of
from eval.report.labels import title_of
from eval.report.paper import Cells, Column, Printed, kept
from eval.report.style import Look, columns_for, looks, panels, whole_lines

LINES = {BASE: "base model", TUNED: "fine-tuned model"}  # row of a plan -> what its horizontal line is called
GAIN = "gain of fine-tuning that is kept, %"
RATIO = "true compression ratio of the linear layers"
APART = 0.022  # of an axis' width: what lies between bars of two methods at one ratio
ROOM = 0.5  # of the way from one nominal ratio to the next: what the points of all methods at one may take
POINTS = (
    "Points: means over seeds at their true byte ratio{}; nominal ratios {}. Bars: 95 % intervals over items and seeds."
)
MOVED = ", moved by at most {:.0%} where bars would hide each other"
HOLLOW = "Hollow: the paper's numbers, at its nominal ratios."


@dataclass
class Panel:
    """What one panel shows."""

    title: str
    unit: str
    curves: Mapping[str, Mapping[float, Cell]]  # label -> nominal ratio -> cell
    lines: Mapping[str, tuple[str | None, float]] = field(default_factory=dict)  # label -> BASE, TUNED or None; height
    paper: Mapping[str, Mapping[float, float]] = field(default_factory=dict)  # label -> nominal ratio -> score


def draw_results(
    file: Path,
    grids: Mapping[str, tuple[Mapping[str, Cell], Mapping[str, Mapping[float, Cell]]]],
    roles: Mapping[str, str],
) -> None:
    """Score against compression ratio, one panel per benchmark, whole checkpoints as horizontal lines.

    roles: whole checkpoint -> BASE or TUNED, where a delta of the same results says that it is that.
    """
    drawn, cells = [], []
    for benchmark, (whole, rows) in grids.items():
        found = [*whole.values(), *(one for row in rows.values() for one in row.values())]
        cells += [(benchmark, one) for one in found]
        lines = {}
        for name, one in whole.items():
            role = roles.get(name.partition(" [")[0])
            lines[f"{LINES[role]}: {name}" if role else name] = (role, one.mean)
        drawn.append(Panel(title_of(benchmark), unit_of(found), rows, lines))
    _draw_curves(file, drawn, f"{conditions_of(cells)}.")


def draw_table(file: Path, printed: Printed, columns: Sequence[Column], cells: Cells) -> None:
    """A table by ratio as curves, one panel per pair and benchmark; the paper's own points hollow and without bars."""
    drawn = [
        _table_panel(pair, benchmark, printed, columns, cells)
        for pair, benchmark in dict.fromkeys((column.pair, column.benchmark) for column in columns)
    ]
    hollow = f"{HOLLOW} " if any(panel.paper for panel in drawn) else ""
    under = conditions_of((column.benchmark, found) for (_, column), found in cells.items())
    _draw_curves(file, drawn, f"{hollow}{under}.", title=printed.title)


def _table_panel(pair: str, benchmark: str, printed: Printed, columns: Sequence[Column], cells: Cells) -> Panel:
    own = [column for column in columns if (column.pair, column.benchmark) == (pair, benchmark)]
    as_gain = any(kept(cells, row, column) for row in printed.labels for column in own)
    curves, paper, lines = {}, {}, {}
    for row, label in printed.labels.items():
        found = {float(column.ratio): kept(cells, row, column) or cells[row, column] for column in own
                 if (row, column) in cells and row not in LINES}  # fmt: skip
        name = marked_label(label, found.values())
        if found:
            curves[name] = found
        said = {float(column.ratio): printed.scores[row, column] for column in own if (row, column) in printed.scores}
        if said:
            paper[name] = said
    for (row, label), share in zip(LINES.items(), (0.0, 100.0), strict=True):
        whole = next((cells[row, column] for column in own if (row, column) in cells), None)
        if whole is not None:
            lines[marked_label(label, [whole])] = (row, share if as_gain else whole.mean)
    unit = GAIN if as_gain else unit_of(one for row in curves.values() for one in row.values())
    return Panel(f"{title_of(benchmark)}, {pair}", unit, curves, lines, paper)


def marked_label(label: str, cells: Iterable[Cell]) -> str:
    """The label with what sets any of the cells apart."""
    marks = ", ".join(dict.fromkeys(one.mark for one in cells if one.mark))
    return f"{label} [{marks}]" if marks else label


def unit_of(cells: Iterable[Cell]) -> str:
    """What the axis of scores is called."""
    return "loss, nats per token" if any(found.measure == NATS for found in cells) else "score, %"


def _draw_curves(file: Path, drawn: Sequence[Panel], caption: str, title: str = "") -> None:
    labels = list(dict.fromkeys(label for panel in drawn for label in (*panel.curves, *panel.paper)))
    look, wide = looks(labels), columns_for(len(drawn))
    ratios = sorted({ratio for panel in drawn for row in panel.curves.values() for ratio in row})
    at = [_places(panel) for panel in drawn]
    farthest = max(map(_farthest, drawn, at), default=0.0)
    moved = MOVED.format(farthest).replace("%", " %") if farthest >= 0.005 else ""
    points = POINTS.format(moved, ", ".join(f"{ratio:g}" for ratio in ratios))
    with panels(file, len(drawn), f"{points} {caption}", title=title) as axes:
        for number, (place, panel) in enumerate(zip(axes, drawn, strict=True)):
            whole_lines(place, panel.lines)
            _curves(place, panel, at[number], look)
            place.set_title(panel.title)
            if number % wide == 0 or panel.unit != drawn[number - 1].unit:
                place.set_ylabel(panel.unit)
            if number + wide >= len(drawn):
                place.set_xlabel(RATIO)


def _curves(place: Axes, panel: Panel, at: Mapping[tuple[str, float], float], look: Mapping[str, Look]) -> None:
    for label, row in panel.curves.items():
        bars = [[max(0.0, one.mean - one.low), max(0.0, one.high - one.mean)] for one in row.values()]
        means, xs = [one.mean for one in row.values()], [at[label, ratio] for ratio in row]
        place.errorbar(xs, means, yerr=list(zip(*bars, strict=True)), label=label, **look[label].curve)
    for label, said in panel.paper.items():
        place.errorbar(list(said), list(said.values()), label=f"{label}, paper", **look[label].hollow)
    place.set_xscale("log", base=2)
    place.xaxis.set_major_locator(LogLocator(2))
    place.xaxis.set_minor_locator(NullLocator())
    place.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    if panel.unit.endswith("%"):
        low, high = place.get_ylim()
        place.set_ylim(max(low, -3), min(high, 103))


def _places(panel: Panel) -> dict[tuple[str, float], float]:
    """(label, nominal ratio) -> where the point stands: at its true ratio, as far as its neighbours leave it room."""
    true = _true_ratios(panel)
    if not true:
        return {}
    order = sorted(true, key=true.__getitem__)
    octaves = max(math.log2(true[order[-1]] / true[order[0]]), 1)
    nominal = sorted({math.log2(ratio) for _, ratio in true})
    steps = [after - before for before, after in itertools.pairwise(nominal)]
    gap = min(octaves * APART, ROOM * min(steps, default=1.0) / len(panel.curves))
    moved = apart([math.log2(true[key]) for key in order], gap)
    return {key: 2**x for key, x in zip(order, moved, strict=True)}


def _true_ratios(panel: Panel) -> dict[tuple[str, float], float]:
    """(label, nominal ratio) -> the true ratio."""
    curves = panel.curves.items()
    return {(label, ratio): one.byte_ratio or ratio for label, row in curves for ratio, one in row.items()}


def _farthest(panel: Panel, at: Mapping[tuple[str, float], float]) -> float:
    """How far a point is moved from its true ratio at most, as a share of it."""
    return max((abs(at[key] / ratio - 1) for key, ratio in _true_ratios(panel).items()), default=0.0)


def apart(values: Sequence[float], gap: float) -> list[float]:
    """Ascending values, moved as little as possible (in squares) so that neighbours are at least `gap` apart.

    Less their gaps, they are to ascend: neighbours that do not are pooled at their mean.
    """
    pools: list[tuple[float, int]] = []  # mean, size
    for number, value in enumerate(values):
        mean, size = value - number * gap, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        pools.append((mean, size))
    level = [mean for mean, size in pools for _ in range(size)]
    return [mean + number * gap for number, mean in enumerate(level)]
