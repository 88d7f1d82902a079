"""The signs of entries of dW and one scale (BitDelta): one bit per kept entry."""

from torch import Tensor

from impart.encodings.encoded import Encoded, Facts, Layout, Shape
from impart.encodings.masked import entry_mask, stored_entry_mask
from impart.masks import LEVELS, scattered
from impart.packing import pack, packed_bytes, unpack

TENSORS = {"codes": "packed codes"}
FACTS = ("seed", "keep", "bits", "mu", "kept")


def write(dW: Tensor, mu: float, *, name: str, keep_ratio: float, seed: int) -> Encoded:
    """The signs of the entries of dW (m, n) that survive; each stands for +-mu over the keep ratio.

    An entry of 0 has the sign +, as in BitDelta's code: it only knows negative entries and all others.
    """
    m, n = dW.shape
    keep = max(1, round(keep_ratio * LEVELS))
    facts = {"seed": seed, "keep": keep, "bits": 1, "mu": mu}
    kept = dW[entry_mask(name, (m, n), seed, keep, dW.device)] >= 0
    return Encoded("signs", (m, n), {"codes": pack(kept, 1)}, {**facts, "kept": [len(kept)]})


def layout(shape: Shape, facts: Facts) -> Layout:
    """A bit for each kept entry."""
    return {"codes": ("U8", (packed_bytes(facts["kept"][0], 1),))}


def dense(name: str, encoded: Encoded) -> Tensor:
    """dW^ (m, n) in fp32."""
    facts = encoded.facts
    codes = unpack(encoded.tensors["codes"], 1, facts["kept"][0])
    values = codes.float().mul_(2).sub_(1).mul_(facts["mu"] * LEVELS / facts["keep"])
    whole = facts["keep"] == LEVELS
    return values.view(encoded.shape) if whole else scattered(values, stored_entry_mask(name, encoded))
