"""How every figure looks: a colour and a marker for each method, lines of whole models, panels in a grid, one legend.

The colours are those of Okabe and Ito, which people with any kind of colour vision tell apart.
"""

import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

from eval.report.cells import BASE, TUNED
from impart.errors import InputError

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend has to be chosen first
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

SUFFIXES = (".png", ".svg", ".pdf")
QUANTIZED = "-Qt"  # how the label of a quantized form ends; it has the colour and the marker of its method
METHODS = {  # label -> colour, marker
    "ImPart": ("#0072B2", "o"),
    "DARE": ("#D55E00", "s"),
    "LowRank": ("#009E73", "D"),
    "Delta-CoMe": ("#CC79A7", "^"),
    "BitDelta": ("#E69F00", "v"),
    "LowRank+Sparse": ("#000000", "H"),
    "DAREx-q": ("#882255", "<"),
    "UltraDelta": ("#332288", ">"),
    "PrinMix": ("#88CCEE", "p"),
    "D-QReLO": ("#999933", "d"),
}
OTHERS = (("#56B4E9", "P"), ("#7F5539", "X"), ("#6A3D9A", "*"), ("#8A8D00", "h"))  # methods of one's own, in turn
ROLES = {BASE: ("0.5", ":"), TUNED: ("0.1", "--")}  # row of a plan -> grey and dashes of the whole model's line
OTHER_WHOLE = (("0.3", "-."), ("0.5", (0, (7, 2))), ("0.65", (0, (1, 3))))  # of further whole models, in turn
VARIANTS = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)))  # lines of one method in several forms
FILLED = 3  # of these, the first have filled markers, the others hollow ones
PANEL = (3.5, 2.7)  # inches
ONE_PANEL = (5.2, 3.2)
CAPTION_SIZE = 7.5  # points
CHARACTER, LINE, LEGEND_HANDLE = 0.075, 0.2, 0.55  # of the legend's text, in inches
CHARACTER_OF_CAPTION, LINE_OF_CAPTION = 0.058, 0.13
GREY = "0.35"
SHADES = "viridis"  # of heat maps and of layers
HIGHLIGHT = "#D55E00"  # of a frame on them
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": "0.6",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "impart",
    "savefig.dpi": 160,
}


@dataclass(frozen=True)
class Look:
    """Of one curve."""

    color: str
    marker: str
    linestyle: Any  # dashes, as matplotlib writes them
    filled: bool = True  # the marker

    @property
    def curve(self) -> dict[str, Any]:
        """Of points with error bars."""
        marker = {"markeredgecolor": "white"} if self.filled else {"markerfacecolor": "white"}
        return self._line | marker | {"capsize": 2.5, "elinewidth": 1.1, "capthick": 1.1}

    @property
    def hollow(self) -> dict[str, Any]:
        """Of numbers from elsewhere, without bars, behind ours."""
        return self._line | {"linestyle": ":", "linewidth": 1, "markersize": 4.5, "mfc": "white", "zorder": 1.5}

    @property
    def _line(self) -> dict[str, Any]:
        return {"color": self.color, "marker": self.marker, "linestyle": self.linestyle}


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A method has its colour and marker in every figure; its forms, such as `ImPart-Qt`, in lines and filling."""
    others = cycle(OTHERS)
    own: dict[str, tuple[str, str]] = {}
    variants: Counter[str] = Counter()
    found = {}
    for label in labels:
        method = label.partition(" (")[0].partition(" [")[0].removesuffix(QUANTIZED)
        if method not in own:
            own[method] = METHODS.get(method) or next(others)
        form = variants[method] % len(VARIANTS)
        found[label] = Look(*own[method], VARIANTS[form], filled=form < FILLED)
        variants[method] += 1
    return found


def whole_lines(panel: Axes, lines: Mapping[str, tuple[str | None, float]]) -> None:
    """Whole models as horizontal lines: label -> BASE, TUNED or None for any other, and its height."""
    others = cycle(OTHER_WHOLE)
    for label, (role, height) in lines.items():
        color, dashes = ROLES[role] if role else next(others)
        panel.axhline(height, color=color, linestyle=dashes, linewidth=1.3, label=label, zorder=1)


def check_figure(file: Path) -> None:
    """InputError for a name that says no format."""
    if file.suffix not in SUFFIXES:
        raise InputError(f"figure {file}: the name must end in .png, .svg or .pdf")


@contextmanager
def panels(
    file: Path, count: int, caption: str, *, title: str = "", size: tuple[float, float] | None = None
) -> Iterator[list[Axes]]:
    """A figure of `count` panels in a grid, which is written when the block ends.

    Below the panels stand one legend of all that has a label in any of them, and the caption.
    """
    columns = columns_for(count)
    rows = math.ceil(count / columns)
    size = size or (PANEL if count > 1 else ONE_PANEL)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False, layout="constrained"
        )
        for empty in axes.flat[count:]:
            empty.set_visible(False)
        yield list(axes.flat[:count])
        if title:
            figure.suptitle(title, fontsize=11)
        _below(figure, caption)
        save(figure, file)


def columns_for(count: int) -> int:
    """Columns of the grid: up to three panels side by side, four as a square, five to eight in two rows."""
    return {4: 2, 7: 4, 8: 4}.get(count, min(count, 3))


def save(figure: Figure, file: Path) -> None:
    """Writes and closes a figure; without dates, so that equal figures are equal files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _below(figure: Figure, caption: str) -> None:
    """The legend, each label once, and the caption, below the panels; the figure grows by what they take."""
    width, height = figure.get_size_inches()
    entries: dict[str, Any] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    lines = textwrap.wrap(caption, int(width / CHARACTER_OF_CAPTION))
    columns = max(1, int(width / (LEGEND_HANDLE + CHARACTER * max(map(len, entries), default=0))))
    rows = math.ceil(len(entries) / columns)
    columns = math.ceil(len(entries) / rows) if rows else 1  # the fewest that take no more rows
    figure.set_size_inches(width, height + 0.1 + LINE * rows + LINE_OF_CAPTION * len(lines))
    legend = figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=columns,
        title="\n".join(lines),
        title_fontsize=CAPTION_SIZE,
    )
    legend.get_title().set_color(GREY)
