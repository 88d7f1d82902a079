"""Heat maps: the points of a grid over two settings, such as beta and C."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from eval.report.cells import Cell, Scored
from eval.report.conditions import conditions_of
from eval.report.paper import Cells, Column
from eval.report.style import HIGHLIGHT, SHADES, panels

KEYS = {"preprune_ratio": "β, pre-pruned share"}  # settings whose axis has another name
READING = "Shade and bold number: mean, in brackets its 95 % interval over items and seeds. Framed: the best mean."


def two_settings(runs: Mapping[tuple[str, Column], Sequence[Scored]]) -> tuple[str, str] | None:
    """The two settings that tell the rows apart; None where there are fewer or more, or where they are no numbers."""
    settings = [dict(found[0].settings) for found in runs.values() if found]
    names = sorted({name for one in settings for name in one})
    keys = [name for name in names if len({one.get(name) for one in settings}) > 1]
    numbers = all(one.get(key, "").replace(".", "", 1).isdecimal() for one in settings for key in keys)
    return (keys[0], keys[1]) if len(keys) == 2 and numbers else None


def draw_grid(
    file: Path, keys: tuple[str, str], runs: Mapping[tuple[str, Column], Sequence[Scored]], cells: Cells
) -> None:
    """A panel per column of the table; keys: the setting that runs upwards, and the one to the right."""
    maps: dict[Column, dict[tuple[float, float], Cell]] = {}
    for (row, column), found in runs.items():
        if found:
            settings = dict(found[0].settings)
            maps.setdefault(column, {})[float(settings[keys[0]]), float(settings[keys[1]])] = cells[row, column]
    _draw(file, maps, keys, conditions_of((column.benchmark, found) for (_, column), found in cells.items()))


def _draw(
    file: Path, maps: Mapping[Column, Mapping[tuple[float, float], Cell]], keys: tuple[str, str], under: str
) -> None:
    """maps: column -> (value upwards, value to the right) -> cell; keys: the names of the two settings."""
    wide, high = (max(len({point[side] for point in points}) for points in maps.values()) for side in (1, 0))
    with panels(file, len(maps), f"{READING} {under}.", size=(1.1 + 0.9 * wide, 1.2 + 0.55 * high)) as axes:
        for place, (column, points) in zip(axes, maps.items(), strict=True):
            _heat_map(place, points)
            place.set(title=str(column), xlabel=KEYS.get(keys[1], keys[1]), ylabel=KEYS.get(keys[0], keys[0]))


def _heat_map(place: Axes, points: Mapping[tuple[float, float], Cell]) -> None:
    ys, xs = (sorted({point[side] for point in points}) for side in (0, 1))
    values = [[points[y, x].mean if (y, x) in points else math.nan for x in xs] for y in ys]
    image = place.pcolormesh(values, cmap=SHADES, edgecolors="white", linewidth=2)
    place.set_xticks([number + 0.5 for number in range(len(xs))], [f"{x:g}" for x in xs])
    place.set_yticks([number + 0.5 for number in range(len(ys))], [f"{y:g}" for y in ys])
    place.grid(visible=False)
    place.tick_params(length=0)
    place.spines[:].set_visible(False)
    for (y, x), one in points.items():
        score, _, interval = str(one).partition(" ")
        style = {"ha": "center", "color": "black" if image.norm(one.mean) > 0.6 else "white"}
        where = (xs.index(x) + 0.5, ys.index(y) + 0.5)
        place.text(*where, score, va="bottom", fontsize=10, fontweight="bold", **style)
        place.text(*where, f"\n{interval}", va="center_baseline", fontsize=6.5, **style)
    best_y, best_x = max(points, key=lambda point: points[point].merit)
    corner = (xs.index(best_x) + 0.03, ys.index(best_y) + 0.03)
    place.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=HIGHLIGHT, linewidth=2.5))
