"""The masks behind a stored matrix: what its seed, its keep thresholds and its name say."""

import numpy as np
import torch
from torch import Tensor

from impart.encodings.encoded import Encoded
from impart.masks import LEVELS, MASKS, bernoulli_mask

THRESHOLD_BYTES = 2  # of a triplet's keep threshold; dense triplets have none
TRIPLET_BYTES = 2  # of a triplet's singular value in 16 bit


def thresholds(keep: Tensor) -> np.ndarray:
    """Keep thresholds t = 1 .. 65536, stored as t - 1 in 16 bits."""
    return keep.cpu().numpy().astype(np.int64) + 1


def stored_thresholds(t: np.ndarray) -> Tensor:
    """The inverse of `thresholds`."""
    return torch.from_numpy((t - 1).astype(np.uint16))


def factor_masks(name: str, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Masks (r, m) of U and (r, n) of V, transposed, of a matrix stored as factors; dense ones keep everything."""
    (m, n), facts = encoded.shape, encoded.facts
    if "keep" not in encoded.tensors:
        return np.ones((facts["rank"], m), dtype=bool), np.ones((facts["rank"], n), dtype=bool)
    t, make = thresholds(encoded.tensors["keep"]), MASKS[facts["mask"]]
    return make(facts["seed"], name, "U", t, m), make(facts["seed"], name, "V", t, n)


def entry_mask(name: str, encoded: Encoded, rows: slice | None = None) -> np.ndarray:
    """Mask (m, n) of a matrix whose entries themselves are kept at random, or of some of its rows."""
    (m, n), facts = encoded.shape, encoded.facts
    rows = rows or slice(0, m)
    return bernoulli_mask(
        facts["seed"], name, "dW", np.full(rows.stop - rows.start, facts["keep"]), n, first=rows.start
    )


def rescaling(t: np.ndarray, like: Tensor) -> Tensor:
    """1 / (1 - p_k) of thresholds t (r,), Eq. 4-5, as a column (r, 1)."""
    return torch.from_numpy(LEVELS / t).to(like)[:, None]
