"""Differences from a row of a planned table, item by item."""

from pathlib import Path

import pytest

from eval.report.against import against_markdown, difference
from eval.report.cells import NATS, PERCENT, Scored, cell
from eval.report.paper import Column, own_table, with_rows
from eval.tables import main as tables
from impart.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
COLUMN = Column("p", "loss_math", "8")


def of(*runs, measure=NATS):
    unit = 100 if measure == PERCENT else 1
    return cell([Scored("x", "m", "A", 8.0, (), unit * sum(run) / len(run), 7.5, run, measure=measure) for run in runs])


def test_hard_items_do_not_hide_a_difference():
    hard = (0.0, 1.0, 2.0, 3.0)
    worse = tuple(h + d for h, d in zip(hard, (0.1, 0.3, 0.1, 0.3), strict=True))
    found = difference(of(worse), of(hard))
    assert found.mean == pytest.approx(0.2) and found.half == pytest.approx(1.96 * (0.01 / 3) ** 0.5, rel=1e-3)
    assert found.verdict == "better" and difference(of(hard), of(worse)).verdict == "worse"


def test_right_answers_are_in_points():
    many, few = of((1.0,) * 4, measure=PERCENT), of((0.0,) * 4, measure=PERCENT)
    assert difference(many, few).verdict == "worse" and difference(few, many).verdict == "better"
    found = difference(of((1.0, 1.0, 1.0, 0.0), measure=PERCENT), of((1.0, 0.0, 1.0, 0.0), measure=PERCENT))
    assert found.mean == pytest.approx(25) and found.half == pytest.approx(1.96 * 25, rel=1e-3)
    assert found.verdict == ""


def test_runs_that_differ_widen_it():
    other = of((0.0, 1.0))
    assert difference(of((0.5, 1.5)), other).half == 0
    assert difference(of((0.4, 1.4), (0.6, 1.6)), other).half == pytest.approx(1.96 * 0.1, rel=1e-3)


def test_a_table_says_what_is_apart():
    printed = with_rows(own_table("t"), {"a": "A", "b": "B", "c": "C"})
    cells = {
        ("a", COLUMN): of((0.0, 1.0, 2.0)),
        ("b", COLUMN): of((0.2, 1.3, 2.2)),
        ("c", COLUMN): of((0.5, 0.6, 2.1)),
    }
    text = against_markdown(printed, [COLUMN, Column("p", "loss_math", "16")], cells, "a")
    [line] = [line for line in text.splitlines() if line.startswith("| math")]
    assert [part.strip() for part in line.split("|")[2:4]] == ["+0.2333 ± 0.0653 *", "+0.0667 ± 0.5103"]
    assert "## t, against A" in text and "less A" in text and "In all, A is better in 1, worse in 0 of 2." in text
    with pytest.raises(InputError, match="--against d: .*known: a, b, c"):
        against_markdown(printed, [COLUMN], cells, "d")


def test_from_the_command_line_nothing_is_written(called, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # from which a plan names its results
    plan = Path("assets/small/results/table1.cells.tsv")
    ended = called(tables, "--cells", plan, "--table", "1", "--against", "impart", "--out", tmp_path)
    assert ended.code == 0 and "less ImPart" in ended.out and "LowRank" in ended.out, ended.err
    assert not list(tmp_path.iterdir())
    assert called(tables, "--cells", plan, "--best", "--against", "impart").code == 2
