"""Tables in the paper's form: planned cells, filled with our results, beside what the paper prints.

Pure functions but for reading assets/paper.yaml and a plan.

A plan is what the scripts of reproduce/ write: one line per result file with the row, the pair, the benchmark, the
compression ratio of the column, and the file. A line of the printed table is a column of the paper's, and vice versa.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import yaml

from eval.report.cells import BASE, NATS, PERCENT, TUNED, Cell, average, gain_kept, same_items
from eval.report.conditions import CONDITIONS, conditions_of, seeds_of
from eval.report.labels import title_of
from impart.errors import InputError
from impart.records import read_text

PAPER = Path(__file__).resolve().parents[2] / "assets" / "paper.yaml"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Column:
    """What a score belongs to: a pair, a benchmark and a nominal compression ratio (empty where there is none)."""

    pair: str
    benchmark: str
    ratio: str

    def __str__(self) -> str:
        name = title_of(self.benchmark)
        return f"{name}, {self.pair}" + (f", CR {self.ratio}" if self.ratio else "")


@dataclass(frozen=True)
class Printed:
    """One table of the paper."""

    title: str
    columns: tuple[Column, ...]
    labels: Mapping[str, str]  # of the rows, in order
    scores: Mapping[tuple[str, Column], float]
    averages: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Plan = Mapping[tuple[str, Column], Sequence[Path]]  # result files of each cell, one per seed
Cells = Mapping[tuple[str, Column], Cell]


def printed_table(number: int, file: Path = PAPER) -> Printed:
    """The paper's table, with the notes on what is odd in it."""
    content = yaml.safe_load(file.read_text())
    if number not in content["tables"]:
        raise InputError(
            f"--table {number}: the paper's tables with scores are {', '.join(map(str, content['tables']))}"
        )
    table = content["tables"][number]
    columns = tuple(
        Column(pair, benchmark, "" if ratio is None else str(ratio)) for pair, benchmark, ratio in table["columns"]
    )
    rows = table["rows"]
    return Printed(
        f"Table {number}: {table['title']}",
        columns,
        {key: row["label"] for key, row in rows.items()},
        {
            (key, column): score
            for key, row in rows.items()
            for column, score in zip(columns, row["scores"], strict=True)
        },
        {key: row["average"] for key, row in rows.items() if "average" in row},
        tuple(content["notes"][note] for note in table["notes"]),
    )


def own_table(title: str) -> Printed:
    """A table that the paper does not have: every row and column is a planned one."""
    return Printed(title, (), {}, {})


def with_rows(printed: Printed, labels: Mapping[str, str]) -> Printed:
    """The table with the planned rows that it lacks after its own; a row without a label is only drawn."""
    more = {row: label for row, label in labels.items() if label and row not in printed.labels}
    return replace(printed, labels={**printed.labels, **more})


def read_plan(file: Path) -> tuple[dict[tuple[str, Column], list[Path]], dict[str, str]]:
    """The cells that a script of reproduce/ planned, in its order, and what it calls their rows."""
    plan: dict[tuple[str, Column], list[Path]] = {}
    labels: dict[str, str] = {}
    for number, line in enumerate(read_text(file).removesuffix("\n").split("\n"), start=1):
        parts = line.split("\t")
        if len(parts) != 6:
            raise InputError(
                f"{file}, line {number}: {len(parts)} fields, but a cell has 6: "
                "row, pair, benchmark, ratio, file, label"
            )
        row, pair, benchmark, ratio, result, label = parts
        plan.setdefault((row, Column(pair, benchmark, ratio)), []).append(Path(result))
        labels.setdefault(row, label)
    return plan, labels


def columns_of(plan: Plan, printed: Printed) -> list[Column]:
    """The paper's columns, where any of them was planned, and after them the planned ones that it lacks."""
    planned = list(dict.fromkeys(column for _, column in plan))
    own = printed.columns if set(planned) & set(printed.columns) else ()
    return [*own, *(column for column in planned if column not in own)]


def paper_markdown(
    printed: Printed,
    columns: Sequence[Column],
    cells: Cells,
    planned: Container[tuple[str, Column]] | None = None,
) -> str:
    """A line per benchmark, a column per method: our mean and interval; the paper's number; the difference.

    Of a table that the paper does not have, cells that were not `planned` (None: all were) stay empty, and averages
    over them: such a method cannot reach the ratio.
    """
    with_paper = any((row, column) in printed.scores for row in printed.labels for column in columns)
    losses = {column for (_, column), found in cells.items() if found.measure == NATS}
    at = " at the true byte ratio" if any(one.byte_ratio for one in cells.values()) else ""
    form = f"mean (95 % interval){at}"
    form = f"our {form} / the paper's number / difference" if with_paper else form

    def line(name: str, own: Sequence[Column], text: Callable[[str], str]) -> list[str]:
        rows = {row: planned is None or all((row, one) in planned for one in own) for row in printed.labels}
        return [name, *(text(row) if printed.scores or wanted else "" for row, wanted in rows.items())]

    lines = [[f"%, {form}", *printed.labels.values()]]
    lines += [line(str(column), [column], partial(_one, printed, column, cells)) for column in columns]
    for name, own in (
        ("average", [column for column in columns if column not in losses]),
        ("average loss", [column for column in columns if column in losses]),
    ):
        if len({(column.pair, column.benchmark) for column in own}) == len(own) > 1:
            lines.append(line(name, own, partial(_average, printed, own, cells)))
    notes = [seeds_of(cells.values())] if cells else ["Nothing of this table was run."]
    if cells:
        notes.append(f"{conditions_of((column.benchmark, found) for (_, column), found in cells.items())}.")
    if any(one.mark for one in cells.values()):
        notes.append("[...] says what sets a cell apart: another rule of scoring, or what differs between the cells.")
    if losses:
        notes.append(
            "Held-out losses are in nats per token, and after them the share of fine-tuning's gain that is kept."
        )
    if with_paper:
        notes += printed.notes
    elif printed.scores:
        notes.append("These are numbers of other models than the paper's; none of the paper's belongs beside them.")
    return "\n".join([f"## {printed.title}", "", *aligned(lines), "", *(f"- {note}" for note in notes)]) + "\n"


def paper_rows(printed: Printed, columns: Sequence[Column], cells: Cells) -> list[tuple]:
    """The same as lines of a CSV, with its header."""
    ours_header = ("seeds", "mean", "low", "high", "byte_ratio", *CONDITIONS, "mark")
    rows: list[tuple] = [
        ("row", "pair", "benchmark", "ratio", *ours_header, "paper", "difference", "kept", "kept_low", "kept_high")
    ]
    for row in printed.labels:
        for column in columns:
            found, paper = cells.get((row, column)), printed.scores.get((row, column))
            share = kept(cells, row, column)
            ours = (
                ("",) * len(ours_header)
                if found is None
                else (
                    found.seeds,
                    *(number(value, found.measure) for value in (found.mean, found.low, found.high)),
                    "" if found.byte_ratio is None else f"{found.byte_ratio:.3f}",
                    *(getattr(found, name) for name in CONDITIONS),
                    found.mark,
                )
            )
            rows.append(
                (
                    row,
                    column.pair,
                    column.benchmark,
                    column.ratio,
                    *ours,
                    "" if paper is None else f"{paper:.2f}",
                    f"{found.mean - paper:.3f}" if found is not None and paper is not None else "",
                    *(("",) * 3 if share is None else (f"{one:.2f}" for one in (share.mean, share.low, share.high))),
                )
            )
    return rows


def kept(cells: Cells, row: str, column: Column) -> Cell | None:
    """The share of the gain of fine-tuning that a row keeps of a loss; None for whole models, and without them.

    None also where they were not asked the same items, and where nothing was gained.
    """
    found = cells.get((row, column))
    whole = [
        next((cells[one, at] for one, at in cells if one == name and _same(at, column)), None) for name in (BASE, TUNED)
    ]
    if found is None or found.measure != NATS or row in (BASE, TUNED) or None in whole:
        return None
    base, tuned = whole
    assert base and tuned
    return gain_kept(found, base, tuned) if same_items(found, base, tuned) and base.mean != tuned.mean else None


def _same(one: Column, other: Column) -> bool:
    return (one.pair, one.benchmark) == (other.pair, other.benchmark)


def number(value: float, measure: str) -> str:
    """A mean or a bound as CSV files have it."""
    return f"{value:.3f}" if measure == PERCENT else f"{value:.6f}"


def best_markdown(plan: Plan, cells: Cells) -> str:
    """A grid search: for each pair and ratio a table with a line per setting, and the best one.

    It is decided by the average where there are several benchmarks; the settings that its interval covers are counted.
    Rows "group: setting" are a search for each group.
    """
    searches: dict[tuple[str, str, str], list[tuple[str, Column]]] = {}
    for row, column in plan:
        searches.setdefault((row.rpartition(": ")[0], column.pair, column.ratio), []).append((row, column))
    return "\n".join(_search_markdown(group, planned, cells) for (group, *_), planned in searches.items())


def _search_markdown(group: str, planned: Sequence[tuple[str, Column]], cells: Cells) -> str:
    columns = list(dict.fromkeys(column for _, column in planned))
    names = [title_of(column.benchmark) for column in columns]
    title = "## " + (f"{group}, " if group else "") + str(replace(columns[0], benchmark=" + ".join(names)))
    found = {
        row.rpartition(": ")[2]: [cells[row, column] for column in columns]
        for row in dict.fromkeys(row for row, _ in planned)
        if all((row, column) in cells for column in columns)
    }
    if not found:
        return f"{title}\n\n{NOT_RUN}\n"
    scores = {setting: average(own) if len(own) > 1 else own[0] for setting, own in found.items()}
    best = max(scores, key=lambda setting: scores[setting].merit)
    rivals = [setting for setting, one in scores.items() if setting != best and _overlap(one, scores[best])]
    unit = "loss, nats" if scores[best].measure == NATS else "score, %"
    lines = [["setting", *(names if len(names) > 1 else []), f"validation {unit} (95 % interval)"]]
    lines += [
        [setting, *(map(str, own) if len(own) > 1 else []), str(scores[setting])] for setting, own in found.items()
    ]
    asked = [(column.benchmark, cells[row, column]) for row, column in planned if (row, column) in cells]
    within = f"; the intervals of {len(rivals)} of the {len(found) - 1} others overlap with it" if rivals else ""
    said = [f"best: {best}, {scores[best]}{within}", f"{conditions_of(asked)}."]
    return "\n".join([title, "", *aligned(lines), "", *said]) + "\n"


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first being its header."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "| " + " | ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return [text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]]


def _one(printed: Printed, column: Column, cells: Cells, row: str) -> str:
    return _text(cells.get((row, column)), printed.scores.get((row, column)), kept(cells, row, column))


def _average(printed: Printed, columns: Sequence[Column], cells: Cells, row: str) -> str:
    found = [cells[row, column] for column in columns if (row, column) in cells]
    paper = printed.averages.get(row) if tuple(columns) == printed.columns else None
    return _text(average(found) if len(found) == len(columns) else None, paper)


def _overlap(one: Cell, other: Cell) -> bool:
    return one.high >= other.low and other.high >= one.low


def _text(found: Cell | None, paper: float | None, share: Cell | None = None) -> str:
    ours = NOT_RUN if found is None else str(found)
    if share is not None:
        ours += f", {share.mean:.1f} %"
    if found is not None and found.byte_ratio is not None:
        ours += f" at {found.byte_ratio:.1f}"
    if paper is None:
        return ours
    return f"{ours} / {paper:.2f} / {'-' if found is None else f'{found.mean - paper:+.1f}'}"
