"""The quantization benchmarks at a small size: their tables are right, how fast anything is is not asked."""

import json
import re
from pathlib import Path

import pytest
import torch
from test_benchmarks import rows_of

from benchmarks import quantization_accuracy, quantization_bytes, quantization_speed, rules, side_by_side
from eval.report.cells import cell
from eval.report.scored import read_scored


def test_bytes(called):
    ended = called(quantization_bytes.main, "--sizes", "512,600", "--device", "cpu")
    assert ended.code == 0, ended.err
    assert ended.out.startswith(side_by_side.cpu_name())
    _, first, second, speeds = re.split(r"\n\n", ended.out)
    for part, nominal in ((first, 32), (second, 128)):
        rows = {layout: list(map(float, cells)) for layout, cells in rows_of(part).items() if layout != "layout"}
        assert rows["grid: compact with accounting: bytes"] == pytest.approx([nominal] * 4, rel=0.01)
        assert min(rows["grid: paper with accounting: bytes"]) > 0.99 * nominal
        in_memory, groups = (row for layout, row in rows.items() if layout.startswith("groups of 128"))
        bitmap, seed = (row for layout, row in rows.items() if layout.startswith("one grid per vector"))
        assert all(a < b < c < nominal for a, b, c in zip(in_memory, groups, seed, strict=True))
        assert all(a < b for a, b in zip(bitmap, seed, strict=True))
    rows = rows_of(speeds)
    assert rows["copy of the weights"][2] == "1.000"
    assert {
        f"unpack + merge, {kind}" for kind in ("sparse, 16 bit", "grid: compact", "grid: paper", "BitDelta")
    } <= set(rows)


@pytest.mark.slow
def test_speed(called):
    ended = called(quantization_speed.main, "--hidden", "128", "--sequences", "1", "--device", "cpu")
    assert ended.code == 0, ended.err
    rows = rows_of(ended.out)
    inner, layer = rows["inner loop, 2048 x 1024, per column"], rows["a layer of hidden 128, 1 x 512 tokens"]
    for *_, speedup, plain, here in (inner, layer):
        assert re.fullmatch(r"\d+\.\dx", speedup)
        assert float(here) == pytest.approx(float(plain), rel=0.02)  # the same algorithm
    assert 0 < float(rows["the same with grid: compact"][-1]) < 1


def test_the_inner_loop_that_is_compared_with_gives_the_same_values():
    from quantize.sparse_gptq import inverse_of, quantize_groups

    generator = torch.Generator().manual_seed(0)
    X = torch.randn(900, 300, generator=generator) @ torch.randn(300, 300, generator=generator)
    inverse, mask = inverse_of(X.T @ X / 900), torch.rand(40, 300, generator=generator) < 0.5
    W = torch.randn(40, 300, generator=generator) * mask
    plain = quantization_speed.plain(W, mask, inverse, 3, 128)
    assert torch.allclose(plain, quantize_groups(W, mask, inverse, 3, 128).values(), atol=1e-4)


class Scores:
    """Stands where the runs are: the validation or test scores of deltas that are names."""

    def __init__(self, **scores):
        self.scores = scores

    def score(self, deltas, split):
        assert split == "validation"
        return [self.scores[delta] for delta in deltas]


def test_the_best_choice_on_validation():
    from impart.errors import InputError

    def delta(letter, seed):
        assert seed == 0
        if letter == "d":
            raise InputError("cannot meet the ratio")
        return letter

    choices = (("d",), ("a",), ("b",), ("c",))
    assert quantization_accuracy.best(Scores(a=1.0, b=3.0, c=3.0), delta, choices) == ("b",)


@pytest.mark.slow
def test_a_line_of_the_accuracy_table_and_the_output_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(quantization_accuracy, "CHOICES", ((0.6, 1.0),))
    runs = quantization_accuracy.Runs(Path(tmp_path), "code")
    made = {grid: quantization_accuracy.impart_qt_deltas(runs, 16, grid) for grid in quantization_accuracy.GRIDS}
    deltas = [made[grid](0.6, 1.0, 0) for grid in made]
    assert [delta.name for delta in deltas] == [
        "impart_qt_16_0.6_1.0_paper_seed0",
        "impart_qt_16_0.6_1.0_compact_seed0",
    ]
    title, chosen, accuracy, half, ratio = quantization_accuracy.line(runs, "both", "", deltas)
    in_tables = cell(
        [read_scored(tmp_path / "code/results/test" / delta.name / "tiny_code/0.json") for delta in deltas]
    )
    assert (accuracy, half) == (f"{in_tables.mean:.1f}", f"{(in_tables.high - in_tables.low) / 2:.1f}")
    assert 60 < float(accuracy) <= 100 and 0 < float(half) < 20
    assert float(ratio) == pytest.approx(quantization_accuracy.true_ratio(deltas), abs=0.05) and float(ratio) < 16
    errors = {name: list(map(float, cells)) for name, *cells in quantization_accuracy.output_errors(runs, 16, [0])}
    assert len(errors) == 22 and errors["mean"][0] == pytest.approx(sum(e[0] for e in errors.values()) / 22, abs=1e-4)
    by_bytes = quantization_accuracy.impart_qt_deltas(runs, 14.0, "compact", "bytes")(0.6, 1.0, 0)
    assert quantization_accuracy.true_ratio([by_bytes]) == pytest.approx(14, rel=0.02)  # as large as asked, not smaller
    rows = json.loads((deltas[1] / "report.json").read_text())["matrices"]
    assert errors[rows[0]["name"].removesuffix(".weight")][1] == pytest.approx(rows[0]["error"], abs=1e-4)


@pytest.mark.parametrize("part, ratio, count", [("budgets", 32, 7), ("impart_budgets", 16, 7), ("rescaling", 8, 5)])
def test_rules_are_compared_at_equal_bytes(called, part, ratio, count):
    few = ("--ratios", ratio, "--parts", part, "--seeds", "1", "--items", "3", "--texts", "12")
    ended = called(rules.main, "assets/tiny/base", "assets/tiny/code", "code", *few)
    assert ended.code == 0, ended.err
    rows = {title: cells for title, cells in rows_of(ended.out).items() if title != part}
    assert len(rows) == count and all(float(cells[-1]) == pytest.approx(ratio, rel=0.05) for cells in rows.values())
    for loss, gain, change, _ in rows.values():
        assert float(loss) > 0 and float(gain.removesuffix(" %")) > 80 and 0 < float(change) < 1
    least = min(rows, key=lambda title: float(rows[title][2]))
    assert f"least change: {least}, loss {rows[least][0]}" in ended.out


@pytest.mark.parametrize(
    "benchmark, arguments, message",
    [
        (quantization_bytes, ("--sizes", "256"), "not a whole number of at least 512"),
        (quantization_bytes, ("--sizes", "2048x2048"), "not a whole number"),
        (quantization_speed, ("--hidden", "100"), "must be a multiple of 64"),
        (quantization_speed, ("--sequences", "0"), "must be at least 1"),
        (rules, ("base", "tuned", "math", "--items", "0"), "must be at least 1"),
        (
            rules,
            ("assets/tiny/base", "assets/tiny/code", "code", "--texts", "101"),
            "fewer than --items 100 and 101 texts",
        ),
        (quantization_accuracy, ("--seeds", "0"), "must be at least 1"),
        (quantization_accuracy, ("--skills", "poetry"), "invalid choice: 'poetry'"),
    ],
)
def test_settings_that_mean_nothing_are_input_errors(called, benchmark, arguments, message):
    ended = called(benchmark.main, *arguments)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1
