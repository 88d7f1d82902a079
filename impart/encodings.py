"""What the stored tensors of one matrix mean: the encodings that an artifact may hold, and how each becomes dW again.

An encoding is a name, the tensors behind one matrix, and a few facts (numbers and words) that stand in delta.json.
"""

from collections.abc import Callable

import numpy as np
import torch

from impart import encodings_quantized
from impart.encoded import Encoded, Tensors
from impart.masks import LEVELS, MASKS, bernoulli_mask, keep_thresholds, kept_values, scattered


def empty(shape: tuple[int, int]) -> Encoded:
    """A matrix whose delta is zero: nothing is stored."""
    return Encoded("empty", tuple(shape), {}, {"rank": 0, "kept": [0, 0], "bits": 16})


def svd_factors(U: torch.Tensor, s: torch.Tensor, V: torch.Tensor, dtype: torch.dtype) -> Encoded:
    """U (m, r), s (r,) and V (n, r) with every entry: U and V in `dtype`, s in fp32."""
    (m, r), n = U.shape, len(V)
    # By rows, as they are written: a layer waits in memory until its shard is, and would be copied there all at once.
    tensors = {"U": U.to(dtype).contiguous(), "s": s.float(), "V": V.to(dtype).contiguous()}
    return Encoded("svd", (m, n), tensors, {"rank": r, "kept": [m * r, n * r], "bits": dtype.itemsize * 8})


def sparse_factors(
    U: torch.Tensor, s: torch.Tensor, V: torch.Tensor, p: np.ndarray, *, seed: int, name: str, mask: str, rescale: bool
) -> Encoded:
    """The entries of U (m, r) and V (n, r) that survive drop probabilities p (r,), Eq. 2-6.

    Stored: the kept values in fp16, column by column, all of U before all of V; s / s_1 in fp16; each column's keep
    threshold in 16 bits. The masks come back from the seed, 1 / (1 - p) from the threshold.
    """
    (m, r), n = U.shape, len(V)
    t = keep_thresholds(p)
    kept = [
        kept_values(factor.T.to(torch.float16), MASKS[mask](seed, name, letter, t, len(factor)))
        for letter, factor in (("U", U), ("V", V))
    ]
    tensors = {
        "values": torch.cat(kept),
        "s": (s / s[0]).to(torch.float16),
        "keep": torch.from_numpy((t - 1).astype(np.uint16)),
    }
    return Encoded(
        "sparse_svd",
        (m, n),
        tensors,
        {
            "rank": r,
            "kept": [len(part) for part in kept],
            "bits": 16,
            "seed": seed,
            "mask": mask,
            "rescale": rescale,
            "s_1": float(s[0]),
        },
    )


def sparse_entries(dW: torch.Tensor, keep_ratio: float, *, seed: int, name: str, rescale: bool = True) -> Encoded:
    """The entries of dW (m, n) itself that survive with probability `keep_ratio` each (DARE), in fp16 by rows."""
    m, n = dW.shape
    t = keep_thresholds(np.full(m, 1.0 - keep_ratio))
    values = torch.cat(
        [kept_values(dW[rows], bernoulli_mask(seed, name, "dW", t[rows], n, rows.start)) for rows in _row_blocks(m, n)]
    )
    values, scale = _in_fp16_range(values)
    return Encoded(
        "sparse_entries",
        (m, n),
        {"values": values},
        {"kept": [len(values)], "bits": 16, "seed": seed, "keep": int(t[0]), "rescale": rescale, "scale": scale},
    )


def factors(name: str, entry: dict, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (m, r), s (r,), V (n, r) in fp32 of a matrix that is stored as factors, masked and rescaled."""
    if entry["encoding"] in encodings_quantized.FACTORED:
        return encodings_quantized.quantized_factors(name, entry, tensors)
    if entry["encoding"] == "svd":
        return tensors["U"].float(), tensors["s"].float(), tensors["V"].float()
    if entry["encoding"] != "sparse_svd":
        raise ValueError(f"{name} is stored as {entry['encoding']}, which has no factors")
    t = tensors["keep"].cpu().numpy().astype(np.int64) + 1
    (m, n), split = entry["shape"], entry["kept"][0]
    values, dense = tensors["values"], []
    for letter, rows, part in (("U", m, values[:split]), ("V", n, values[split:])):
        factor = scattered(part, MASKS[entry["mask"]](entry["seed"], name, letter, t, rows))  # (r, rows)
        if entry["rescale"]:
            factor *= torch.from_numpy(LEVELS / t).to(factor)[:, None]  # Eq. 4-5: 1 / (1 - p_k)
        dense.append(factor.T)
    return dense[0], tensors["s"].float() * entry["s_1"], dense[1]


def decode(name: str, entry: dict, tensors: Tensors) -> torch.Tensor:
    """dW (m, n) in fp32, on the device of `tensors`. `entry`: the matrix's facts with `encoding` and `shape`."""
    return DECODERS[entry["encoding"]](name, entry, tensors)


def _decode_empty(name: str, entry: dict, tensors: Tensors) -> torch.Tensor:
    return torch.zeros(entry["shape"], dtype=torch.float32)


def _decode_factors(name: str, entry: dict, tensors: Tensors) -> torch.Tensor:
    U, s, V = factors(name, entry, tensors)
    return (U * s) @ V.T  # dW^ = U^ diag(s) V^^T


def _decode_entries(name: str, entry: dict, tensors: Tensors) -> torch.Tensor:
    (m, n), values, start = entry["shape"], tensors["values"], 0
    t = np.full(m, entry["keep"])
    dW = torch.empty(m, n, dtype=torch.float32, device=values.device)
    for rows in _row_blocks(m, n):
        mask = bernoulli_mask(entry["seed"], name, "dW", t[rows], n, rows.start)
        count = int(mask.sum())
        dW[rows] = scattered(values[start : start + count], mask)
        start += count
    return dW * (entry["scale"] * (LEVELS / entry["keep"] if entry["rescale"] else 1.0))


DECODERS: dict[str, Callable[[str, dict, Tensors], torch.Tensor]] = {
    "empty": _decode_empty,
    "svd": _decode_factors,
    "sparse_svd": _decode_factors,
    "sparse_entries": _decode_entries,
    **encodings_quantized.DECODERS,
}


def _row_blocks(m: int, n: int, entries: int = 1 << 23) -> list[slice]:
    step = max(1, entries // n)
    return [slice(start, min(start + step, m)) for start in range(0, m, step)]


def _in_fp16_range(values: torch.Tensor) -> tuple[torch.Tensor, float]:
    """fp16 values and the power of two that they are multiplied by: deltas of 1e-6 would else be lost to rounding."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    scale = 2.0 ** np.ceil(np.log2(largest)) if largest > 0 else 1.0
    return (values / scale).to(torch.float16), float(scale)
