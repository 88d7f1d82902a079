"""Draws assets/overview.png: from the delta of one matrix to what is stored of it, with the numbers of a real one.

    python assets/overview.py                 the tiny pair's chat model, layer 1, mlp.up_proj, compression ratio 8
    python assets/overview.py --out FILE.png

Everything in the picture is computed: dW of the shipped models, its SVD, Algorithm 1's keep ratios and the masks of
seed 0.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python assets/overview.py`: import from the repository root, not from assets/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from impart.checkpoint import open_checkpoint
from impart.config import Parser
from impart.encodings.masked import factor_masks
from impart.errors import run
from impart.method import DenseMatrix
from sparsify.allocation import preprune_ratio as preprune
from sparsify.allocation import sparsity_ratios, uv_sparsity
from sparsify.methods.impart import ImPart

ROOT = Path(__file__).resolve().parents[1]
NAME = "model.layers.1.mlp.up_proj.weight"
CR, BETA, C, SEED = 8.0, 0.6, 1.0, 0
SHOWN_ROWS, SHOWN_COLUMNS = 96, 24  # of a factor: the picture shows its upper left corner
DROPPED = "0.82"


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "overview.png", help="picture that is written")
    flags = parser.parse_args(arguments)
    base, tuned = (open_checkpoint(ROOT / "assets" / "tiny" / name) for name in ("base", "chat"))
    dW = tuned.tensor(NAME).float() - base.tensor(NAME).float()
    matrix, method = DenseMatrix(NAME, dW), ImPart(compression_ratio=CR, preprune_ratio=BETA, C=C)
    m, n = matrix.shape
    triplets = matrix.triplets(min(m, n))
    assert triplets is not None  # the shipped models differ
    U, s, V = (part.numpy() for part in triplets)
    encoded = method.encode(matrix, SEED)
    mask_U, mask_V = (mask.numpy() for mask in factor_masks(NAME, encoded))

    figure = plt.figure(figsize=(13, 3.6), dpi=130)
    grid = figure.add_gridspec(1, 5, width_ratios=(1.5, 1.7, 1.9, 1.7, 1.3), wspace=0.34, left=0.03, right=0.985,
                               bottom=0.16, top=0.84)  # fmt: skip
    panels = [figure.add_subplot(cell) for cell in grid]
    image(panels[0], dW.numpy(), f"dW = fine-tuned $-$ base\n{m} x {n}, 16 bit")
    factors(panels[1], U, V, None, None, "SVD\nU, s, V")
    kept_shares(panels[2], s, m, n)
    factors(
        panels[3],
        U,
        V,
        mask_U.T,
        mask_V.T,
        "masks from a seed (grey: dropped),\nthe rest times 1 / (1 $-$ p)",
    )
    stored(panels[4], encoded.nbytes, 2 * m * n)
    for left, right in zip(panels[:-1], panels[1:], strict=True):
        x = (left.get_position().x1 + right.get_position().x0) / 2
        figure.text(x, 0.5, "$\\rightarrow$", fontsize=17, ha="center", va="center", color="0.35")
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(flags.out)
    print(flags.out)


def image(panel: Axes, values: np.ndarray, title: str) -> None:
    """A matrix as colours, blue below zero and red above."""
    reach = np.percentile(np.abs(values), 99)
    panel.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
    panel.set(xticks=[], yticks=[])
    panel.set_title(title, fontsize=9.5)


def factors(
    panel: Axes, U: np.ndarray, V: np.ndarray, mask_U: np.ndarray | None, mask_V: np.ndarray | None, title: str
) -> None:
    """The upper left corners of U and V side by side; masked entries are pale."""
    corners = []
    for factor, mask in ((U, mask_U), (V, mask_V)):
        corner = factor[:SHOWN_ROWS, :SHOWN_COLUMNS].copy()
        if mask is not None:
            kept = np.zeros_like(corner, dtype=bool)
            part = mask[:SHOWN_ROWS, :SHOWN_COLUMNS]
            kept[:, : part.shape[1]] = part
            corner = np.where(kept, corner, np.nan)
        corners.append(corner)
    gap = np.full((len(corners[0]), 3), np.inf)
    colours = plt.get_cmap("RdBu_r").with_extremes(bad=DROPPED, over="white")
    reach = np.percentile(np.abs(U), 98)
    both = np.concatenate([corners[0], gap, corners[1]], axis=1)
    panel.imshow(np.ma.masked_invalid(np.where(np.isinf(both), np.nan, both)), cmap=colours, vmin=-reach, vmax=reach,
                 aspect="auto", interpolation="nearest")  # fmt: skip
    panel.axvspan(SHOWN_COLUMNS - 0.5, SHOWN_COLUMNS + 2.5, color="white")
    panel.set(xticks=[SHOWN_COLUMNS / 2, 1.5 * SHOWN_COLUMNS + 3], yticks=[])
    panel.set_xticklabels(["U", "V"])
    panel.tick_params(length=0)
    panel.set_title(title, fontsize=9.5)


def kept_shares(panel: Axes, s: np.ndarray, m: int, n: int) -> None:
    """Singular values and Algorithm 1's keep ratio of each, over k."""
    p = sparsity_ratios(s.astype(np.float64), uv_sparsity(m, n, CR), preprune(m, n, BETA), C)
    keep = np.zeros(len(s))
    keep[: len(p)] = 1 - p
    k = np.arange(1, len(s) + 1)
    shown = 3 * len(p)
    panel.fill_between(k[:shown], keep[:shown], step="mid", color="#4477aa", alpha=0.35, linewidth=0)
    panel.plot(k[:shown], keep[:shown], drawstyle="steps-mid", color="#4477aa", label="share kept, 1 $-$ p")
    panel.plot(k[:shown], (s / s[0])[:shown], color="#cc6677", label="s / s$_1$")
    panel.set(xlabel="singular vector k", ylim=(0, 1.05), xlim=(0.5, shown))
    panel.tick_params(labelsize=8)
    panel.xaxis.label.set_size(9)
    panel.legend(fontsize=8, frameon=False)
    panel.set_title("every singular vector gets\nits own sparsity", fontsize=9.5)


def stored(panel: Axes, nbytes: int, dense: int) -> None:
    """Bytes before and after, to scale."""
    panel.barh([1, 0], [dense, nbytes], color=["0.75", "#4477aa"], height=0.55)
    panel.text(dense, 1, f"{dense:,} bytes ", ha="right", va="center", fontsize=8.5)
    panel.text(nbytes, 0, f"  {nbytes:,}", ha="left", va="center", fontsize=8.5)
    panel.set_yticks([1, 0], ["dW", "stored"], fontsize=9)
    panel.set(xticks=[], ylim=(-0.7, 1.7))
    for side in ("top", "right", "bottom"):
        panel.spines[side].set_visible(False)
    panel.set_title(f"delta artifact\n{dense / nbytes:.1f} times smaller", fontsize=9.5)


if __name__ == "__main__":
    run(main)
