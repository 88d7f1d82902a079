"""Copies a table and the results that it is made of, without the texts of prompts and answers, to be kept and checked.

    python reproduce/export.py runs/tables/small --out assets/small/results
    python eval/tables.py --cells assets/small/results/table1.cells.tsv --table 1 --out elsewhere

Reads the folder of a printed table and the result files that its cells name; writes tables, CSV files and figures as
they are, every result with its marks or losses in one list, and cells that name the copies. The second command, from
the same folder as the first, prints the table again.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python reproduce/export.py`: import from the repository root, not from reproduce/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.report.scored import read_scored
from eval.run.results import read_result
from impart.config import Parser
from impart.errors import InputError, run

CELLS = ".cells.tsv"
COPIED = (".md", ".csv", ".png", ".svg")
DIGITS = 8  # decimals of a loss


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("tables", type=Path, help="folder of printed tables, RUNS/tables/...")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the copies go")
    flags = parser.parse_args(arguments)
    plans = sorted(flags.tables.glob(f"*{CELLS}"))
    if not plans:
        raise InputError(f"{flags.tables} has no *{CELLS}; a script of reproduce/ writes it")
    flags.out.mkdir(parents=True, exist_ok=True)
    for plan in plans:
        lines = [line.split("\t") for line in plan.read_text().splitlines()]
        copied = ["\t".join((*line[:4], str(exported(Path(line[4]), line[1], flags.out)), *line[5:])) for line in lines]
        (flags.out / plan.name).write_text("".join(f"{line}\n" for line in copied))
    for file in flags.tables.iterdir():
        if file.suffix in COPIED:
            shutil.copyfile(file, flags.out / file.name)


def exported(result: Path, pair: str, out: Path) -> Path:
    """Where the copy of a result is; written unless the result is not there, which the table calls `not run`."""
    copy = out / pair / Path(*result.parts[-4:])  # results_<split>/<model>/<benchmark>/<seed>.json
    if result.is_file():
        content = read_result(result)
        marks = read_scored(result).per_item
        content["per_item"] = [int(mark) if mark in (0, 1) else round(mark, DIGITS) for mark in marks]
        content.pop("samples", None)
        copy.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
        copy.write_text(f"{{\n{lines}\n}}\n")
    return copy


if __name__ == "__main__":
    run(main)
