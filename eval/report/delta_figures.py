"""What a delta artifact holds, as figures: spectra of its matrices, and their sparsity by layer and type."""

from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

from eval.report.figures import save
from impart.architecture import layer_of, weight_type
from impart.artifact import Delta
from impart.errors import InputError
from impart.report import progress

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  the backend has to be chosen first
from matplotlib.ticker import NullFormatter  # noqa: E402


def draw_spectra(file: Path, delta: Delta) -> None:
    """s_k / s_1 over k of every matrix stored as factors, a panel per weight type, a line per layer."""
    by_type = defaultdict(dict)
    for name in progress(delta.names(), what="reading spectra"):
        if delta.rank(name):
            _, s, _ = delta.factors(name)
            by_type[weight_type(name)][layer_of(name)] = (s / s[0]).numpy()
    if not by_type:
        raise InputError(
            f"{str(delta.path)!r} holds no singular values (method {delta.manifest['method']}); take an SVD, "
            "ImPart or LowRank delta"
        )
    layers = max(layer for group in by_type.values() for layer in group) + 1
    figure, axes = plt.subplots(
        2, (len(by_type) + 1) // 2, figsize=(3.2 * ((len(by_type) + 1) // 2), 5.6), squeeze=False
    )
    for panel, (kind, group) in zip(axes.flat, sorted(by_type.items()), strict=False):
        for layer, spectrum in sorted(group.items()):
            panel.plot(
                np.arange(1, len(spectrum) + 1),
                spectrum,
                color=plt.cm.viridis(layer / max(layers - 1, 1)),
                linewidth=1,
                label=f"layer {layer}" if layer in (0, layers - 1) else None,
            )
        panel.set(title=kind, xlabel="k", ylabel="s_k / s_1", xscale="log", ylim=(0, 1.05))
        panel.xaxis.set_minor_formatter(NullFormatter())  # the labels of short axes would overlap
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    for panel in axes.flat[len(by_type) :]:
        panel.axis("off")
    save(figure, file)


def draw_sparsity(file: Path, delta: Delta) -> None:
    """Share of dropped entries (of U and V, or of dW) by layer and weight type."""
    found = {(layer_of(name), weight_type(name)): sparsity(entry) for name, entry in delta.manifest["matrices"].items()}
    layers, kinds = sorted({layer for layer, _ in found}), sorted({kind for _, kind in found})
    values = np.array([[found.get((layer, kind), np.nan) for layer in layers] for kind in kinds])
    figure, panel = plt.subplots(figsize=(max(5.0, 0.3 * len(layers) + 3), 0.4 * len(kinds) + 1.4))
    image = panel.imshow(values, aspect="auto", cmap="viridis")
    panel.set_xticks(range(0, len(layers), max(1, len(layers) // 10)), layers[:: max(1, len(layers) // 10)])
    panel.set_yticks(range(len(kinds)), kinds)
    panel.set(xlabel="layer", title=f"sparsity, {delta.manifest['method']}")
    if len(layers) <= 8:  # room for numbers
        for (row, column), value in np.ndenumerate(values):
            panel.text(
                column,
                row,
                f"{value:.3f}",
                ha="center",
                va="center",
                fontsize=8,
                color="black" if image.norm(value) > 0.6 else "white",
            )
    figure.colorbar(image, ax=panel)
    save(figure, file)


def sparsity(entry: dict) -> float:
    """Share of entries of the full factors, or of the dense matrix, that a stored matrix lacks."""
    m, n = entry["shape"]
    kept = entry["kept"]
    return 1 - sum(kept) / ((m + n) * min(m, n) if len(kept) == 2 else m * n)
