"""The table of all methods: what is tried on validation items, what is chosen, and what a method cannot reach."""

import json

import pytest

from impart.errors import InputError
from reproduce.beyond import at_ratio, chosen, line, main, reaches, searches, table_lines, tried
from reproduce.steps import Wanted
from reproduce.things import Plan

ROWS = {
    "dare": {"kind": "sparse"},
    "darex": {"kind": "sparse", "q": ["1.5/CR", "2/CR"]},
    "dqrelo": {"kind": "quantized"},
}


def test_every_combination_of_listed_values_is_tried_and_single_ones_are_fixed():
    assert tried({"kind": "sparse", "a": [1, 2], "b": 3, "c": ["x", "y"]}) == [
        {"a": a, "b": 3, "c": c} for a in (1, 2) for c in ("x", "y")
    ]
    assert tried({"kind": "sparse"}) == [{}]
    assert at_ratio({"q": "1.5/CR", "bits": 2}, "8") == {"q": 0.1875, "bits": 2}


def test_rows_with_one_setting_are_not_searched():
    assert searches(ROWS, ["tiny/code"], ["8"]) == [
        "sparse darex tiny/code 8 q=0.1875 on loss_code as 'darex: q=1.5/CR'",
        "sparse darex tiny/code 8 q=0.25 on loss_code as 'darex: q=2/CR'",
    ]


def result(folder, model, loss):
    file = folder / model / "loss_code" / "0.json"
    file.parent.mkdir(parents=True)
    content = {"benchmark": "loss_code", "model": model, "score": loss, "measure": "nats", "per_item": [loss, loss]}
    file.write_text(json.dumps({**content, "settings": {}, "n": 2}))
    return file


def test_the_best_on_validation_items_is_what_the_table_asks_at_ratios_that_are_reached(tmp_path):
    cells = tmp_path / "beyond.cells.tsv"
    losses = {"darex: q=1.5/CR": 0.3, "darex: q=2/CR": 0.2}
    cells.write_text(
        "".join(
            f"{row}\ttiny/code\tloss_code\t32\t{result(tmp_path, str(number), loss)}\t{row}\n"
            for number, (row, loss) in enumerate(losses.items())
        )
    )
    found = chosen(ROWS, ["tiny/code"], cells)
    assert found == {("tiny/code", "dare"): {}, ("tiny/code", "dqrelo"): {}, ("tiny/code", "darex"): {"q": "2/CR"}}
    lines = table_lines(ROWS, found, ["tiny/code"], ["8", "16"], "tiny")
    assert [one for one in lines if "darex" in one] == [
        "sparse darex tiny/code 8 q=0.25 on tiny_code", "sparse darex tiny/code 16 q=0.125 on tiny_code",
    ]  # fmt: skip
    assert [one.split()[3] for one in lines if "dqrelo" in one] == ["8"]


def test_a_row_without_a_file_is_no_ratio_that_cannot_be_reached():
    assert not reaches("quantized", "dqrelo", "tiny/code", "16", {})
    with pytest.raises(InputError, match="there is no configs/rows/nobody.yaml"):
        reaches("sparse", "nobody", "tiny/code", "16", {})


def test_a_line_may_ask_another_benchmark_than_the_pairs(tmp_path):
    plan = Plan(Wanted(runs=tmp_path, seeds=(0,), threads=1))
    for text in ("base tiny/code 8 drawn on loss_code", line("sparse", "dare", "tiny/code", "8", {}, "loss", "mine")):
        plan.add(text.replace("'", "").split())
    assert [(cell.row, cell.benchmark) for cell in plan.cells] == [("backbone", "loss_code"), ("mine", "loss_code")]


def test_a_table_needs_its_search(called):
    done = called(main, "table", "--pairs", "tiny/code", "--ratios", "8")
    assert done.code == 2 and done.err.startswith("error: --searched is missing")


def test_a_budget_below_one_triplet_is_seen_before_anything_is_encoded():
    counted = {"grid": "compact", "accounting": "bytes"}
    assert reaches("quantized", "impart_qt", "tiny/code", "32", counted)
    assert not reaches("quantized", "impart_qt", "tiny/code", "64", counted)
