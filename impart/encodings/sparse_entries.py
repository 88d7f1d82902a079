"""The entries of dW itself that survive with one probability (DARE), in fp16 by rows."""

import numpy as np
import torch
from torch import Tensor

from impart.encodings.encoded import Encoded, Facts, Layout, Shape
from impart.encodings.masked import entry_mask, stored_entry_mask
from impart.masks import LEVELS, keep_thresholds, scattered

TENSORS = {"values": "kept values"}
FACTS = ("kept", "bits", "seed", "keep", "rescale", "scale")


def write(dW: Tensor, keep_ratio: float, *, seed: int, name: str, rescale: bool = True) -> Encoded:
    """dW (m, n), each entry of which is kept with probability `keep_ratio`."""
    (m, n), keep = dW.shape, int(keep_thresholds(np.array([1.0 - keep_ratio]))[0])
    values, scale = _in_fp16_range(
        torch.cat([dW[rows][entry_mask(name, (m, n), seed, keep, dW.device, rows)] for rows in _row_blocks(m, n)])
    )
    facts = {"kept": [len(values)], "bits": 16, "seed": seed, "keep": keep, "rescale": rescale, "scale": scale}
    return Encoded("sparse_entries", (m, n), {"values": values}, facts)


def layout(shape: Shape, facts: Facts) -> Layout:
    """The kept entries."""
    return {"values": ("F16", (facts["kept"][0],))}


def dense(name: str, encoded: Encoded) -> Tensor:
    """dW^ (m, n) in fp32, multiplied by 1 / (1 - p) where it is rescaled."""
    (m, n), facts, values, start = encoded.shape, encoded.facts, encoded.tensors["values"], 0
    dW = torch.empty(m, n, dtype=torch.float32, device=values.device)
    for rows in _row_blocks(m, n):
        mask = stored_entry_mask(name, encoded, rows)
        count = int(mask.sum())
        dW[rows] = scattered(values[start : start + count], mask)
        start += count
    return dW * (facts["scale"] * (LEVELS / facts["keep"] if facts["rescale"] else 1.0))


def _row_blocks(m: int, n: int, entries: int = 1 << 23) -> list[slice]:
    step = max(1, entries // n)
    return [slice(start, min(start + step, m)) for start in range(0, m, step)]


def _in_fp16_range(values: Tensor) -> tuple[Tensor, float]:
    """fp16 values and the power of two that they are multiplied by: deltas of 1e-6 would else be lost to rounding."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    scale = 2.0 ** np.ceil(np.log2(largest)) if largest > 0 else 1.0
    return (values / scale).to(torch.float16), float(scale)
