"""A planned table as differences from one of its rows, item by item. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.cells import DIGITS, NATS, PERCENT, Cell, same_items, variance_of
from eval.report.conditions import conditions_of, seeds_of
from eval.report.paper import Cells, Column, Printed, aligned
from eval.run.results import Z95
from impart.errors import InputError


@dataclass(frozen=True)
class Difference:
    """A cell less another one, by item, in the measure's unit."""

    mean: float
    half: float  # of its 95 % interval
    measure: str

    @property
    def verdict(self) -> str:
        """Whether the other cell is "better" or "worse", or "" where the interval has 0 in it."""
        if abs(self.mean) <= self.half:
            return ""
        return "better" if (self.mean > 0) == (self.measure == NATS) else "worse"

    def __str__(self) -> str:
        digits = DIGITS[self.measure]
        return f"{self.mean:+.{digits}f} ± {self.half:.{digits}f}" + " *" * bool(self.verdict)


def difference(found: Cell, other: Cell) -> Difference:
    """The items' variance and that of the means of both cells' runs are added. ValueError for other items."""
    unit = 100 if found.measure == PERCENT else 1
    apart = [unit * (x - y) for x, y in zip(found.by_item, other.by_item, strict=True)]
    of_runs = unit**2 * (found.variance_of_runs + other.variance_of_runs)
    half = Z95 * math.sqrt(variance_of(apart) / len(apart) + of_runs)
    return Difference(math.fsum(apart) / len(apart), half, found.measure)


def against_markdown(printed: Printed, columns: Sequence[Column], cells: Cells, row: str) -> str:
    """A line per benchmark, a column per method: its score less the row's, and how far that is known.

    InputError for a row that has no results.
    """
    asked = [column for column in columns if (row, column) in cells]
    if not asked:
        known = [name for name in printed.labels if any((name, column) in cells for column in columns)]
        raise InputError(f"--against {row}: no row with results has this name; known: {', '.join(known)}")
    label = printed.labels[row]
    others = {name: text for name, text in printed.labels.items() if name != row}
    found = {
        (name, column): difference(cells[name, column], cells[row, column])
        for name in others
        for column in asked
        if (name, column) in cells and same_items(cells[name, column], cells[row, column])
    }
    lines = [[f"less {label}", *others.values()]]
    lines += [[str(column), *(str(found.get((name, column), "")) for name in others)] for column in asked]
    lines.append([f"{label} is", *(_count([one for (of, _), one in found.items() if of == name]) for name in others)])
    used = [(column.benchmark, one) for (_, column), one in cells.items() if column in asked]
    notes = [
        "Means over items, each first averaged over seeds, and half of their 95 % intervals over items and seeds.",
        "`*`: 0 is outside of the interval. Above 0 a loss is worse than the row's, a share of right answers better.",
        f"In all, {label} is {_count(list(found.values()))}.",
        seeds_of(one for _, one in used),
        f"{conditions_of(used)}.",
    ]
    title = f"## {printed.title}, against {label}"
    return "\n".join([title, "", *aligned(lines), "", *(f"- {note}" for note in notes)]) + "\n"


def _count(found: Sequence[Difference]) -> str:
    better, worse = ([one.verdict for one in found].count(verdict) for verdict in ("better", "worse"))
    return f"better in {better}, worse in {worse} of {len(found)}"
