"""The conditions of a score (number of items, backend, dtype), and marks for scores that differ in them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from eval.report.cells import Cell, Scored
from eval.report.labels import title_of
from eval.run.descriptions import by_result_name

CONDITIONS = ("n", "backend", "dtype")  # attributes of Scored and Cell, columns of every CSV file


def marked_apart(scored: Sequence[Scored], *, beside_whole: bool = False) -> list[Scored]:
    """The scores of one benchmark; those that differ in a condition say theirs in their marks.

    beside_whole: they will stand beside a score on all items of the benchmark, which is not among them: the paper's.
    """
    differing = [name for name in CONDITIONS if len({getattr(one, name) for one in scored}) > 1]
    return [_with_mark(one, differing, beside_whole) for one in scored]


def _with_mark(one: Scored, differing: Sequence[str], beside_whole: bool) -> Scored:
    whole = items_of(one.benchmark) if beside_whole else None
    if whole not in (None, one.n):
        parts = [f"n = {one.n} instead of {whole}"]
    else:
        parts = [f"n = {one.n}"] * ("n" in differing)
    parts += [getattr(one, name) or f"{name} not said" for name in differing if name != "n"]
    return replace(one, mark=", ".join(part for part in (one.mark, *parts) if part))


def conditions_of(cells: Iterable[tuple[str, Cell]]) -> str:
    """What holds for the cells of a table, each with its benchmark: `n = 164; backend vllm; dtype fp16`."""
    values: dict[str, dict[str, list[str]]] = {name: {} for name in CONDITIONS}
    for benchmark, cell in cells:
        for name in CONDITIONS:
            titles = values[name].setdefault(_said(benchmark, cell, name), [])
            titles += [title_of(benchmark)] if title_of(benchmark) not in titles else []
    return "; ".join(
        ", ".join(f"{value} ({', '.join(titles)})" if len(found) > 1 else value for value, titles in found.items())
        for found in values.values()
        if list(found) != [""]
    )


def seeds_of(cells: Iterable[Cell]) -> str:
    """How many seeds the means are of."""
    seeds = sorted({one.seeds for one in cells})
    return f"Means over {' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])}."


def _said(benchmark: str, cell: Cell, name: str) -> str:
    if name != "n":
        value = getattr(cell, name)
        return f"{name} {value}" if value else ""
    whole = items_of(benchmark)
    return f"n = {cell.n}" + (f" where the benchmark has {whole}" if whole not in (None, cell.n) else "")


def items_of(benchmark: str) -> int | None:
    """How many items the whole benchmark has; None where no script of eval/ says it."""
    known = by_result_name()
    return known[benchmark].items if benchmark in known else None
