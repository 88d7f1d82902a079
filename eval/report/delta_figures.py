"""What a delta artifact holds, as figures: spectra of its matrices, and their sparsity by layer and type."""

from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import NullFormatter

from eval.report.style import SHADES, panels
from impart.architecture import layer_of, weight_type
from impart.artifact import Delta
from impart.errors import InputError
from impart.report import progress

ROOM_FOR_NUMBERS = 8  # layers


def draw_spectra(file: Path, delta: Delta) -> None:
    """s_k / s_1 over k of every matrix stored as factors, a panel per weight type, a line per layer."""
    by_type: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for name in progress(delta.names(), what="reading spectra"):
        layer = layer_of(name)
        if layer is not None and delta.rank(name):  # embedding and head are in none
            _, s, _ = delta.factors(name)
            by_type[weight_type(name)][layer] = (s / s[0]).numpy()
    if not by_type:
        raise InputError(
            f"{str(delta.path)!r} holds no singular values (method {delta.manifest['method']}); take an SVD, "
            "ImPart or LowRank delta"
        )
    layers = max(layer for group in by_type.values() for layer in group)
    shades = ScalarMappable(Normalize(0, max(layers, 1)), SHADES)
    with panels(file, len(by_type), "Singular values of every matrix's delta, relative to its largest.") as axes:
        for panel, (kind, group) in zip(axes, sorted(by_type.items()), strict=True):
            for layer, spectrum in sorted(group.items()):
                panel.plot(np.arange(1, len(spectrum) + 1), spectrum, color=shades.to_rgba(layer), linewidth=1.2)
            panel.set(title=kind, xlabel="k", ylabel="$s_k / s_1$", xscale="log", ylim=(0, 1.05))
            panel.xaxis.set_minor_formatter(NullFormatter())  # the labels of short axes would overlap
        bar = axes[0].figure.colorbar(shades, ax=axes, label="layer", aspect=40)
        bar.set_ticks(sorted({0, layers // 2, layers}))


def draw_sparsity(file: Path, delta: Delta) -> None:
    """Share of dropped entries (of U and V, or of dW) by layer and weight type."""
    entries = delta.manifest["matrices"].items()
    found = {
        (layer, weight_type(name)): sparsity(entry) for name, entry in entries if (layer := layer_of(name)) is not None
    }
    layers, kinds = sorted({layer for layer, _ in found}), sorted({kind for _, kind in found})
    values = np.array([[found.get((layer, kind), np.nan) for layer in layers] for kind in kinds])
    size = (max(5.0, 0.3 * len(layers) + 3), 0.4 * len(kinds) + 1.2)
    caption = "Share of dropped entries: of U and V where a matrix is stored as factors, else of the dense delta."
    with panels(file, 1, caption, size=size) as (panel,):
        image = panel.imshow(values, aspect="auto", cmap=SHADES)
        step = max(1, len(layers) // 10)
        panel.set_xticks(range(0, len(layers), step), layers[::step])
        panel.set_yticks(range(len(kinds)), kinds)
        panel.set(xlabel="layer", title=f"sparsity, {delta.manifest['method']}")
        panel.grid(visible=False)
        panel.tick_params(length=0)
        if len(layers) <= ROOM_FOR_NUMBERS:
            _write_numbers(panel, image, values)
        panel.figure.colorbar(image, ax=panel, label="share dropped")


def _write_numbers(panel: Axes, image: matplotlib.image.AxesImage, values: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if image.norm(value) > 0.6 else "white"
        panel.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=8, color=colour)


def sparsity(entry: dict) -> float:
    """Share of entries of the full factors, or of the dense matrix, that a stored matrix lacks."""
    m, n = entry["shape"]
    kept = entry["kept"]
    return 1 - sum(kept) / ((m + n) * min(m, n) if len(kept) == 2 else m * n)
