"""How figures look: one look for a method everywhere, bars that do not hide each other, and what is drawn where."""

import pytest

from eval.report.cells import BASE, TUNED, Cell, Scored
from eval.report.figures import Panel, _places, apart
from eval.report.heat_maps import two_settings
from eval.report.paper import Column
from eval.report.style import METHODS, columns_for, looks, panels, plt, whole_lines
from impart.config import keys_of
from sparsify.settings import methods


def cell(mean, byte_ratio=None, half=2.0):
    return Cell(mean, mean - half, mean + half, 3, byte_ratio, n=100)


def test_a_method_looks_the_same_in_every_figure_and_its_forms_differ():
    alone, both = looks(["ImPart-Qt"]), looks(["DARE", "ImPart (C=0.5)", "ImPart (C=1) [n = 8]", "ImPart-Qt"])
    assert {(look.color, look.marker) for look in (*alone.values(), *list(both.values())[1:])} == {METHODS["ImPart"]}
    assert len({str(look.linestyle) for look in list(both.values())[1:]}) == 3
    assert (both["DARE"].color, both["DARE"].marker) == METHODS["DARE"]


def test_methods_of_ones_own_have_looks_of_their_own():
    found = looks(["ImPart", "Mine", "Mine-Qt", "Other"])
    assert found["Mine"].color == found["Mine-Qt"].color
    assert len({(look.color, look.marker) for look in found.values()} - set(METHODS.values())) == 2


def test_every_method_of_the_paper_has_a_colour_and_a_marker_that_no_other_has():
    known = (*methods("sparse").values(), *methods("quantized").values())
    labels = [method.label.partition(" (")[0] for method in known if method.ratio_key in keys_of(method)]
    with_ratio = {label.removesuffix("-Qt") for label in labels}
    assert with_ratio <= set(METHODS)
    assert (
        len({color for color, _ in METHODS.values()}) == len({marker for _, marker in METHODS.values()}) == len(METHODS)
    )


def test_bars_move_apart_as_little_as_possible():
    assert apart([1.0, 2.0, 5.0], 0.5) == [1.0, 2.0, 5.0]
    assert apart([1.0, 1.0, 1.0], 0.5) == [0.5, 1.0, 1.5]
    assert apart([0.0, 0.25, 4.0], 0.5) == [-0.125, 0.375, 4.0]
    assert apart([], 1) == []


def test_points_stand_at_their_true_ratios_and_at_the_nominal_ones_where_those_are_unknown():
    places = _places(Panel("", "score, %", {"a": {8.0: cell(1, 6.9), 64.0: cell(1, 28.2)}, "b": {16.0: cell(1)}}))
    assert places == {("a", 8.0): pytest.approx(6.9), ("b", 16.0): pytest.approx(16), ("a", 64.0): pytest.approx(28.2)}
    near = _places(Panel("", "score, %", {"a": {8.0: cell(1, 8.0)}, "b": {8.0: cell(1, 8.0)}}))
    assert near["a", 8.0] < 8 < near["b", 8.0] < 8.2


def test_points_of_many_methods_stay_near_their_ratio():
    curves = {f"m{number}": {ratio: cell(1, ratio) for ratio in (8.0, 16.0, 32.0)} for number in range(16)}
    places = _places(Panel("", "score, %", curves))
    assert all(2**-0.26 < x / ratio < 2**0.26 for (_, ratio), x in places.items())
    assert len(set(places.values())) == 48


def test_five_benchmarks_are_a_grid():
    assert [columns_for(count) for count in (1, 2, 3, 4, 5, 6, 7, 8, 10)] == [1, 2, 3, 2, 3, 3, 4, 4, 3]


def test_the_legend_stands_below_the_panels_and_names_everything_once(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(plt, "close", kept.append)  # so that the figure can be looked at
    with panels(tmp_path / "f.png", 5, "How it was measured.") as axes:
        for place in axes:
            whole_lines(place, {"base model": (BASE, 1.0), "tuned": (TUNED, 9.0), "another": (None, 5.0)})
    (figure,) = kept
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["base model", "tuned", "another"]
    assert legend.get_title().get_text() == "How it was measured."
    figure.canvas.draw()
    top = legend.get_window_extent().y1
    assert all(panel.get_tightbbox().y0 >= top for panel in figure.axes if panel.get_visible())
    monkeypatch.undo()
    plt.close(figure)


def grid_of(**settings):
    column = Column("p", "gsm8k", "32")
    scored = [Scored("gsm8k", "m", "ImPart", 32.0, tuple(sorted(one.items())), 50.0, 30.0, (1.0, 0.0)) for one in
              settings.values()]  # fmt: skip
    return {(row, column): [one] for row, one in zip(settings, scored, strict=True)}


def test_a_heat_map_is_drawn_of_two_settings_that_are_numbers():
    a, b = {"C": "0.5", "preprune_ratio": "0.6", "mask": "x"}, {"C": "1.0", "preprune_ratio": "0.7", "mask": "x"}
    assert two_settings(grid_of(a=a, b=b)) == ("C", "preprune_ratio")
    assert two_settings(grid_of(a=a, b={**b, "C": "0.5"})) is None  # one setting
    assert two_settings(grid_of(a=a, b={**a, "C": "1", "mask": "y"})) is None  # no number
    assert two_settings(grid_of(a=a, b={"C": "1", "preprune_ratio": "0.6"})) is None  # missing in one
    assert two_settings({}) is None
