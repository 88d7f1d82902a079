"""The lines of reproduce/beyond.sh: settings that are tried on validation items, and the table with the best of them.

    python reproduce/beyond.py search --pairs "tiny/code" --ratios 32
    python reproduce/beyond.py table --pairs "tiny/code" --ratios "8 16" --searched SEARCH/beyond.cells.tsv
    python reproduce/beyond.py notes --pairs "tiny/code" --ratios "8 16" --searched ... --runs runs

Reads reproduce/beyond.yaml, which has a row of the table a line, and the results of the search; prints lines for
plan.py, or a table of what was tried, chosen and spent.
"""

import itertools
import json
import logging
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as `python reproduce/beyond.py`: import from the repository root, not from reproduce/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.report.cells import cell
from eval.report.paper import aligned, read_plan
from eval.report.scored import read_scored
from impart.architecture import linear_names
from impart.checkpoint import open_checkpoint
from impart.config import Parser, read_layers
from impart.errors import InputError, run
from impart.pair import as_overrides, load_pair, value_text
from impart.report import start_logging
from reproduce.costs import missing_models
from reproduce.plan import refuse_missing
from reproduce.rows import ROOT, given_label, row_file
from reproduce.things import planned_method

log = logging.getLogger(__name__)
ROWS = ROOT / "reproduce" / "beyond.yaml"
PER_RATIO = "/CR"  # 1.4/CR: a multiple of 1 / CR
Settings = Mapping[str, Any]


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("what", choices=("search", "table", "notes"))
    parser.add_argument("--pairs", type=str.split, required=True, help="folders of configs/")
    parser.add_argument("--ratios", type=str.split, required=True, help="true compression ratios")
    parser.add_argument("--rows", default=str(ROWS), help="what is compared and tried (default reproduce/beyond.yaml)")
    parser.add_argument("--benchmark", choices=("loss", "tiny"), default="loss", help="held-out loss, or accuracy")
    parser.add_argument("--searched", type=Path, help="cells of the search, which plan.py wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the deltas (default runs)")
    flags = parser.parse_args(arguments)
    start_logging()
    rows = read_layers(flags.rows)[0].values
    if flags.what != "notes":
        refuse_missing([problem for pair in flags.pairs for problem in missing_models(load_pair(pair))])
    if flags.what == "search":
        lines = searches(rows, flags.pairs, flags.ratios)
    else:
        if flags.searched is None:
            raise InputError("--searched is missing: the cells that the search of beyond.sh wrote")
        found = chosen(rows, flags.pairs, flags.searched)
        if flags.what == "table":
            lines = table_lines(rows, found, flags.pairs, flags.ratios, flags.benchmark)
        else:
            lines = notes(rows, found, flags.pairs, flags.runs)
    print("\n".join(lines))


def tried(row: Settings) -> list[dict[str, Any]]:
    """Every combination of a row's listed values, with those that are fixed."""
    keys = [key for key in row if key != "kind"]
    values = [row[key] if isinstance(row[key], list) else [row[key]] for key in keys]
    return [dict(zip(keys, combination, strict=True)) for combination in itertools.product(*values)]


def at_ratio(settings: Settings, ratio: str) -> dict[str, Any]:
    """The settings with multiples of 1 / CR computed."""
    return {
        key: float(value.removesuffix(PER_RATIO)) / float(ratio) if str(value).endswith(PER_RATIO) else value
        for key, value in settings.items()
    }


def searches(rows: Mapping[str, Settings], pairs: Sequence[str], ratios: Sequence[str]) -> list[str]:
    """A line for every setting of the rows that have several, on the loss of validation items."""
    return [
        line(rows[row]["kind"], row, pair, ratio, settings, "loss", f"{row}: {' '.join(as_overrides(settings))}")
        for pair, ratio, row in itertools.product(pairs, ratios, rows)
        for settings in tried(rows[row])
        if len(tried(rows[row])) > 1 and reaches(rows[row]["kind"], row, pair, ratio, settings)
    ]


def table_lines(
    rows: Mapping[str, Settings],
    found: Mapping[tuple[str, str], Settings],
    pairs: Sequence[str],
    ratios: Sequence[str],
    benchmark: str,
) -> list[str]:
    """The table: whole models, and each row at each ratio that it reaches, with its best setting."""
    lines = []
    for pair, ratio in itertools.product(pairs, ratios):
        on = f"on {benchmark}_{skill(pair)}"
        lines += [f"base {pair} {ratio} drawn {on}", f"finetuned {pair} {ratio} drawn {on}"]
        lines += [
            line(rows[row]["kind"], row, pair, ratio, found[pair, row], benchmark)
            for row in rows
            if (pair, row) in found and reaches(rows[row]["kind"], row, pair, ratio, found[pair, row])
        ]
    return lines


def line(kind: str, row: str, pair: str, ratio: str, settings: Settings, benchmark: str, name: str = "") -> str:
    """One line of a plan."""
    words = [kind, row, pair, ratio, *as_overrides(at_ratio(settings, ratio)), "on", f"{benchmark}_{skill(pair)}"]
    return " ".join([*words, *(["as", f"'{name}'"] if name else [])])


def skill(pair: str) -> str:
    """What the pair's benchmarks ask: math of loss_math."""
    return load_pair(pair).benchmarks[0].partition("_")[2]


def reaches(kind: str, row: str, pair: str, ratio: str, settings: Settings) -> bool:
    """Whether the budget of every matrix of the pair can be met; why not is said in the log."""
    base = open_checkpoint(load_pair(pair).base_model)
    row_file(row)  # a row that is not there reaches nothing for another reason
    try:
        method = planned_method(kind, row, pair, float(ratio), at_ratio(settings, ratio))
        for name in linear_names(base):
            method.check(name, *base.shape(name))
    except InputError as error:
        log.info("%s at %s on %s: %s", row, ratio, pair, error)
        return False
    return True


def chosen(rows: Mapping[str, Settings], pairs: Sequence[str], searched: Path) -> dict[tuple[str, str], Settings]:
    """(pair, row) -> the setting with the best loss on validation items; the only one where none was searched."""
    best: dict[tuple[str, str], tuple[float, Settings]] = {}
    plan = read_plan(searched)[0] if searched.is_file() else {}  # where every row has one setting
    for (name, column), files in plan.items():
        row, _, said = name.partition(": ")
        results = [read_scored(file) for file in files if file.is_file()]
        settings = next((one for one in tried(rows[row]) if " ".join(as_overrides(one)) == said), None)
        if results and settings is not None:
            merit = cell(results).merit
            if (column.pair, row) not in best or merit > best[column.pair, row][0]:
                best[column.pair, row] = merit, settings
    only = {(pair, row): tried(keys)[0] for pair in pairs for row, keys in rows.items() if len(tried(keys)) == 1}
    return {**only, **{key: settings for key, (_, settings) in best.items()}}


def notes(
    rows: Mapping[str, Settings], found: Mapping[tuple[str, str], Settings], pairs: Sequence[str], runs: Path
) -> list[str]:
    """What was tried and chosen of every row, and the mean seconds and largest memory of its deltas."""
    table = [["method", "settings tried", *pairs, "seconds", "peak memory, MiB"]]
    for row, keys in rows.items():
        free = [key for key, value in keys.items() if isinstance(value, list)]
        picked = [
            ", ".join(f"{key} {value_text(found[pair, row][key])}" for key in free) if (pair, row) in found else "none"
            for pair in pairs
        ]
        table.append([given_label(row), str(len(tried(keys))), *picked, *spent(row, pairs, runs)])
    return aligned(table)


def spent(row: str, pairs: Sequence[str], runs: Path) -> tuple[str, str]:
    """Mean seconds and largest resident memory of the runs that made a row's deltas, as their reports say."""
    files = [file for pair in pairs for file in (runs / pair).glob(f"{row}_[cq][rt][0-9]*/report.json")]
    reports = [json.loads(file.read_text()) for file in files]
    if not reports:
        return "", ""
    seconds = statistics.fmean(one["seconds"] for one in reports)
    return f"{seconds:.1f}", f"{max(one['peak_memory_mib'] for one in reports):.0f}"


if __name__ == "__main__":
    run(main)
