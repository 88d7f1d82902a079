"""Entries of dW that survive with one probability, as codes of one uniform grid for the whole matrix (UltraDelta)."""

from torch import Tensor

from impart.encodings.encoded import Encoded, Facts, Layout, Shape
from impart.encodings.masked import entry_mask, stored_entry_mask
from impart.masks import LEVELS, scattered
from impart.packing import pack, packed_bytes, unpack

TENSORS = {"codes": "packed codes"}
FACTS = ("seed", "keep", "bits", "kept", "low", "step")


def write(dW: Tensor, bits: int, factor: float, *, name: str, keep_ratio: float, seed: int) -> Encoded:
    """dW (m, n) on the grid of 2^bits values from its smallest to its largest; kept ones are multiplied by `factor`."""
    (m, n), low, top = dW.shape, float(dW.min()), 2**bits - 1
    step = (float(dW.max()) - low) / top
    keep = max(1, round(keep_ratio * LEVELS))
    kept = dW[entry_mask(name, (m, n), seed, keep, dW.device)]
    codes = ((kept - low) / step if step else kept * 0).round().clamp(0, top)
    facts = {"seed": seed, "keep": keep, "bits": bits, "kept": [len(kept)], "low": low * factor, "step": step * factor}
    return Encoded("uniform_entries", (m, n), {"codes": pack(codes, bits)}, facts)


def layout(shape: Shape, facts: Facts) -> Layout:
    """A code for each kept entry."""
    return {"codes": ("U8", (packed_bytes(facts["kept"][0], facts["bits"]),))}


def dense(name: str, encoded: Encoded) -> Tensor:
    """dW^ (m, n) in fp32."""
    facts = encoded.facts
    codes = unpack(encoded.tensors["codes"], facts["bits"], facts["kept"][0])
    values = codes.float().mul_(facts["step"]).add_(facts["low"])
    return scattered(values, stored_entry_mask(name, encoded))
