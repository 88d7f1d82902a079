"""Tables and figures from the results that the benchmark scripts wrote; nothing else reads them.

    python eval/tables.py results
    python eval/tables.py runs/quickstart/tiny/chat/results_test --figure accuracy.png --csv accuracy.csv
    python eval/tables.py runs --leaderboard
    python eval/tables.py --cells runs/tables/paper/table1.cells.tsv --table 1 --out runs/tables/paper
    python eval/tables.py --cells assets/small/results/figure1.cells.tsv --table 5 --against impart
    python eval/tables.py --delta runs/wizardmath_13b/impart_cr32_seed0 --out figures

The first two print one Markdown table per benchmark: a line per method (with the settings in which its runs differ), a
column per compression ratio; a cell is the mean over seeds with its 95 % interval. --leaderboard ranks every result
below the folders. --cells, which the scripts of reproduce/ use, prints a planned table: in the paper's form beside the
paper's numbers (--table N), or one that the paper does not have (--title TEXT); with --against ROW how far its methods
are from one of them, item by item, and nothing is written.
--delta draws what a delta artifact holds: spectra.png and .svg, sparsity.png and .svg.
"""

import csv
import io
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

if not __package__:  # run as `python eval/tables.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.report.against import against_markdown
from eval.report.cells import NATS, Cell, Scored, cell, grid
from eval.report.conditions import CONDITIONS, conditions_of, marked_apart, seeds_of
from eval.report.paper import (
    Cells,
    Column,
    Plan,
    Printed,
    aligned,
    best_markdown,
    columns_of,
    number,
    own_table,
    paper_markdown,
    paper_rows,
    printed_table,
    read_plan,
    with_rows,
)
from eval.report.scored import read_scored
from eval.run.descriptions import by_result_name
from impart.config import Parser
from impart.errors import InputError, run
from impart.files import write_atomically


def main(arguments: Sequence[str]) -> None:
    flags = parse(arguments)
    if flags.delta:
        delta_report(flags.delta, flags.out)
    elif flags.cells:
        planned_table(flags)
    elif flags.leaderboard:
        print(leaderboard(read_results(*flags.results)))
    else:
        overview(flags)


def parse(arguments: Sequence[str]) -> Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "results", type=Path, nargs="*", help="folders with <model>/<benchmark>/<seed>.json, at any depth"
    )
    parser.add_argument(
        "--figure",
        type=Path,
        action="append",
        default=[],
        help="also draw scores against compression ratio (.png, .svg or .pdf); may be given twice",
    )
    parser.add_argument("--csv", type=Path, help="also write every cell as a line")
    parser.add_argument("--leaderboard", action="store_true", help="rank all results, benchmark by benchmark")
    parser.add_argument("--cells", type=Path, help="plan of a table, written by the scripts of reproduce/")
    parser.add_argument("--table", type=int, help="the paper's table that the plan belongs to")
    parser.add_argument("--title", help="title of a table that the paper does not have")
    parser.add_argument("--against", metavar="ROW", help="print differences from this row of the plan, item by item")
    parser.add_argument("--best", action="store_true", help="the plan is a grid search: say which setting is best")
    parser.add_argument("--delta", type=Path, help="draw the matrices of this delta artifact")
    parser.add_argument(
        "--out", type=Path, default=Path("."), help="folder of the files that --cells and --delta write"
    )
    flags = parser.parse_intermixed_args(arguments)
    if sum(map(bool, (flags.results, flags.cells, flags.delta))) != 1:
        raise InputError("give one of: folders with results, --cells, --delta")
    if flags.cells and sum(map(bool, (flags.table, flags.title, flags.best))) != 1:
        raise InputError("--cells needs one of --table N, --title TEXT and --best")
    if flags.against and (not flags.cells or flags.best or flags.figure):
        raise InputError("--against goes with --cells and --table or --title, and draws nothing")
    if flags.figure:
        from eval.report.style import check_figure  # matplotlib takes a second to import

        for file in flags.figure:
            check_figure(file)
    return flags


def overview(flags: Namespace) -> None:
    """A table per benchmark, and the same as CSV and figure."""
    scored = read_results(*flags.results)
    grids = {benchmark: grid(marked_apart(runs)) for benchmark, runs in by_benchmark(scored)}
    print("\n\n".join(markdown(benchmark, *cells) for benchmark, cells in grids.items()))
    if flags.csv:
        write_csv(flags.csv, overview_rows(grids))
    if flags.figure:
        from eval.report.figures import draw_results

        for file in flags.figure:
            draw_results(file, grids, {name: role for one in scored for name, role in one.whole.items()})


def planned_table(flags: Namespace) -> None:
    """A table in the paper's form, or the summary of a grid search, from the cells that were planned."""
    plan, labels = read_plan(flags.cells)
    paper = printed_table(flags.table) if flags.table else own_table(flags.title)
    runs = marked_runs(plan, paper)
    cells = {key: cell(found) for key, found in runs.items() if found}
    printed = with_rows(paper, labels)
    columns = columns_of(plan, printed)
    if flags.best:
        text = best_markdown(plan, cells)
        name = flags.cells.name.partition(".")[0]
    elif flags.against:
        print(against_markdown(printed, columns, cells, flags.against))
        return
    else:
        name = f"table{flags.table}" if flags.table else flags.cells.name.partition(".")[0]
        text = paper_markdown(printed, columns, cells, plan)
        write_csv(flags.out / f"{name}.csv", paper_rows(printed, columns, cells))
    flags.out.mkdir(parents=True, exist_ok=True)
    write_atomically(flags.out / f"{name}.md", text.encode())
    print(text)
    draw_planned(flags, printed, columns, runs, cells)


def marked_runs(plan: Plan, paper: Printed) -> dict[tuple[str, Column], list[Scored]]:
    """The results that are there; what differs within a benchmark of a pair, or from the paper, is in their marks."""
    runs = {key: [read_scored(file) for file in map(_found, files) if file] for key, files in plan.items()}
    for pair, benchmark in dict.fromkeys((column.pair, column.benchmark) for _, column in runs):
        own = [key for key in runs if (key[1].pair, key[1].benchmark) == (pair, benchmark)]
        with_paper = any(key in paper.scores for key in own)
        marked = iter(marked_apart([one for key in own for one in runs[key]], beside_whole=with_paper))
        for key in own:
            runs[key] = [next(marked) for _ in runs[key]]
    return runs


def draw_planned(flags: Namespace, printed: Printed, columns: Sequence[Column], runs: Mapping, cells: Cells) -> None:
    """A heat map where two settings tell the rows apart, else curves by ratio."""
    if not flags.figure or not cells:
        return
    from eval.report.figures import draw_table
    from eval.report.heat_maps import draw_grid, two_settings

    keys = two_settings(runs)
    if flags.best and keys is None:
        raise InputError("--best --figure draws searches over two settings that are numbers, such as beta and C")
    for file in flags.figure:
        if keys:
            draw_grid(file, keys, runs, cells)
        else:
            draw_table(file, printed, columns, cells)


def delta_report(path: Path, out: Path) -> None:
    """spectra and sparsity of a delta artifact as .png and .svg in `out`."""
    from eval.report.delta_figures import draw_sparsity, draw_spectra
    from impart.artifact import open_delta

    delta = open_delta(path)
    draws = {"sparsity": draw_sparsity}
    if any(delta.rank(name) for name in delta.names()):
        draws["spectra"] = draw_spectra
    for name, draw in draws.items():
        for suffix in ("png", "svg"):
            draw(out / f"{name}.{suffix}", delta)
            print(out / f"{name}.{suffix}")


def read_results(*folders: Path) -> list[Scored]:
    """Every result below the folders; InputError when there is none."""
    files = sorted(
        file
        for folder in folders
        for file in folder.rglob("*/*/*.json")
        if file.stem.isdecimal() and file.with_suffix(".jsonl").is_file()
    )
    if not files:
        raise InputError(
            f"no results in {', '.join(map(repr, map(str, folders)))}; the benchmark scripts write them as "
            "<model>/<benchmark>/<seed>.json"
        )
    return [read_scored(file) for file in files]


def by_benchmark(scored: Sequence[Scored]) -> list[tuple[str, list[Scored]]]:
    """The results of each benchmark."""
    names = sorted({one.benchmark for one in scored})
    return [(name, [one for one in scored if one.benchmark == name]) for name in names]


def leaderboard(scored: Sequence[Scored]) -> str:
    """Every run of every benchmark, the best first; runs of one model are one line."""
    parts = []
    for benchmark, results in by_benchmark(scored):
        runs: dict[tuple, list[Scored]] = {}
        for one in marked_apart(results):
            runs.setdefault((one.model, one.method, one.ratio, one.mark), []).append(one)
        ranked = sorted(
            ((key, cell(group)) for key, group in runs.items()), key=lambda pair: (-pair[1].merit, str(pair[0]))
        )
        lines = [["rank", "model", "method", "CR", "byte ratio", heading(benchmark, ranked[0][1])]]
        lines += [
            [
                str(rank),
                model,
                method or "whole",
                f"{ratio:g}" if ratio else "",
                f"{found.byte_ratio:.1f}" if found.byte_ratio else "",
                str(found),
            ]
            for rank, ((model, method, ratio, _), found) in enumerate(ranked, start=1)
        ]
        parts.append("\n".join([*aligned(lines), "", f"{conditions_of((benchmark, found) for _, found in ranked)}."]))
    return "\n\n".join(parts)


def markdown(benchmark: str, whole: Mapping[str, Cell], rows: Mapping[str, Mapping[float, Cell]]) -> str:
    """One benchmark as a Markdown table."""
    ratios = sorted({ratio for row in rows.values() for ratio in row})
    some = next(iter([*whole.values(), *(found for row in rows.values() for found in row.values())]))
    header = [heading(benchmark, some), *([f"CR {ratio:g}" for ratio in ratios] or ["score"])]
    lines = [[f"{name} (whole)", str(found), *[""] * (len(ratios) - 1)] for name, found in whole.items()]
    lines += [
        [label, *(str(row[ratio]) if ratio in row else "not run" for ratio in ratios)] for label, row in rows.items()
    ]
    return "\n".join([*aligned([header, *lines]), "", *notes(benchmark, whole, rows)])


def notes(benchmark: str, whole: Mapping[str, Cell], rows: Mapping[str, Mapping[float, Cell]]) -> list[str]:
    """What a reader of one benchmark's table has to know: seeds, true ratios, conditions."""
    cells = [found for row in rows.values() for found in row.values()]
    said = []
    if cells:
        said.append(seeds_of(cells))
    true = {label: [f"{one.byte_ratio:.1f}" for one in row.values() if one.byte_ratio] for label, row in rows.items()}
    if any(true.values()):
        shown = "; ".join(f"{label} {', '.join(ratios)}" for label, ratios in true.items() if ratios)
        said.append(f"True byte ratios of the linear layers, from left to right: {shown}.")
    under = conditions_of((benchmark, found) for found in [*whole.values(), *cells])
    return [*said, f"{under}."]


def heading(benchmark: str, found: Cell) -> str:
    """What a column of scores is called: the benchmark, and in what it is measured."""
    return f"{benchmark}, {'nats per token' if found.measure == NATS else '%'} (95 % interval)"


def overview_rows(grids: Mapping) -> list[tuple]:
    """benchmark, method, nominal and true ratio, mean and interval: one line per cell, after a header."""
    header = ("benchmark", "method", "ratio", "byte_ratio", "mean", "low", "high", "seeds", *CONDITIONS, "mark")
    lines: list[tuple] = [header]
    for benchmark, (whole, rows) in grids.items():
        for label, ratio, found in [
            *((name, "", one) for name, one in whole.items()),
            *((label, ratio, one) for label, row in rows.items() for ratio, one in row.items()),
        ]:
            byte_ratio = "" if found.byte_ratio is None else f"{found.byte_ratio:.3f}"
            lines.append(
                (
                    benchmark,
                    label,
                    ratio,
                    byte_ratio,
                    *(number(value, found.measure) for value in (found.mean, found.low, found.high)),
                    found.seeds,
                    *(getattr(found, name) for name in CONDITIONS),
                    found.mark,
                )
            )
    return lines


def write_csv(file: Path, rows: Iterable[Sequence]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.getvalue().encode())


def _found(file: Path) -> Path | None:
    """The result file of a plan, under any name that its benchmark's results may have."""
    known = by_result_name().get(file.parent.name)
    places = [file.parent.with_name(name) / file.name for name in (known.also if known else ())]
    return next((one for one in (file, *places) if one.is_file()), None)


if __name__ == "__main__":
    run(main)
