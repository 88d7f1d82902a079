"""The masks behind a stored matrix: what its seed, its keep thresholds and its name say."""

import numpy as np
import torch
from torch import Tensor

from impart.device_masks import draw_mask
from impart.encodings.encoded import Encoded, Shape
from impart.masks import LEVELS

THRESHOLD_BYTES = 2  # of a triplet's keep threshold; dense triplets have none
TRIPLET_BYTES = 2  # of a triplet's singular value in 16 bit


def thresholds(keep: Tensor) -> np.ndarray:
    """Keep thresholds t = 1 .. 65536, stored as t - 1 in 16 bits."""
    return keep.cpu().numpy().astype(np.int64) + 1


def stored_thresholds(t: np.ndarray) -> Tensor:
    """The inverse of `thresholds`."""
    return torch.from_numpy((t - 1).astype(np.uint16))


def factor_masks(name: str, encoded: Encoded) -> tuple[Tensor, Tensor]:
    """Masks (r, m) of U and (r, n) of V, transposed, of a matrix stored as factors; dense ones keep everything.

    On the device of the stored tensors.
    """
    (m, n), facts = encoded.shape, encoded.facts
    if "keep" not in encoded.tensors:
        whole = torch.ones(facts["rank"], m + n, dtype=torch.bool, device=encoded.device)
        return whole[:, :m], whole[:, m:]
    t = thresholds(encoded.tensors["keep"])
    mask_U, mask_V = (
        draw_mask(facts["mask"], facts["seed"], name, factor, t, rows, encoded.device)
        for factor, rows in (("U", m), ("V", n))
    )
    return mask_U, mask_V


def entry_mask(
    name: str, shape: Shape, seed: int, keep: int, device: torch.device | str, rows: slice | None = None
) -> Tensor:
    """Mask (m, n) of a matrix whose entries themselves are kept at random, `keep` of 65536, or of some of its rows."""
    m, n = shape
    rows = rows or slice(0, m)
    t = np.full(rows.stop - rows.start, keep)
    return draw_mask("bernoulli", seed, name, "dW", t, n, device, first=rows.start)


def stored_entry_mask(name: str, encoded: Encoded, rows: slice | None = None) -> Tensor:
    """`entry_mask` of a stored matrix, on the device of its tensors."""
    facts = encoded.facts
    return entry_mask(name, encoded.shape, facts["seed"], facts["keep"], encoded.device, rows)


def rescaling(t: np.ndarray, like: Tensor) -> Tensor:
    """1 / (1 - p_k) of thresholds t (r,), Eq. 4-5, as a column (r, 1)."""
    return torch.from_numpy(LEVELS / t).to(like)[:, None]
