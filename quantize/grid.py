"""b-bit grids: which numbers the codes 0 .. 2^b - 1 of a group of weights stand for.

A grid is (scale, zero), and code q stands for (q - zero) * scale. Two rules choose it, both from the kept entries only:

- `minmax_grid`, GPTQ's rule: from the smallest to the largest entry, widened to contain 0 exactly; the zero is a whole
  number.
- `fitted_grid`: the least squared error. The zero may lie between two codes: a masked entry is known from its mask and
  needs no code for 0. It is one of 256 steps over the codes, so that it is stored in one byte.

Rows are independent: W is (rows, entries), `bits` is a number or one per row.
"""

import math

import torch
from torch import Tensor

SHARES = (
    0.9,
    0.7,
    0.55,
    0.43,
    0.34,
    0.26,
    0.2,
)  # of the largest distance from the mean: ranges from which a fit starts
TURNS = 3  # of rounding and least squares from each start
LAST_TURNS = 6  # and from the best of them
TINY = 1e-12


def top_codes(bits: int | Tensor, like: Tensor) -> Tensor:
    """The largest codes, 2^b - 1, one per row of `like`, in its dtype."""
    bits = torch.as_tensor(bits, device=like.device)
    return (2**bits - 1).to(like.dtype).expand(like.shape[0])


def nearest_codes(W: Tensor, scale: Tensor, zero: Tensor, top: Tensor) -> Tensor:
    """The code of the nearest grid point of every entry, as a floating-point whole number; everything broadcasts."""
    return torch.minimum((W / scale + zero).round_().clamp_(min=0), top)


def fp16_unit(W: Tensor) -> float:
    """A power of two; counted in it, the steps of grids over W are well inside the range of fp16."""
    return 2.0 ** (math.frexp(float(W.abs().max()))[1] - 8)  # the largest entry becomes 128 .. 256


def minmax_grid(W: Tensor, mask: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
    """(rows, entries) -> scale (rows,) rounded to fp16 as it is stored, zero (rows,): asymmetric, contains 0."""
    kept, top = W * mask, top_codes(bits, W)
    low, high = kept.amin(1).clamp(max=0), kept.amax(1).clamp(min=0)
    empty = (low == 0) & (high == 0)
    low, high = low.masked_fill(empty, -1), high.masked_fill(empty, 1)
    scale = ((high - low) / top).to(torch.float16).to(W.dtype).clamp(min=torch.finfo(torch.float16).tiny)
    return scale, torch.minimum((-low / scale).round(), top)


def fitted_grid(W: Tensor, mask: Tensor, bits: int | Tensor) -> tuple[Tensor, Tensor]:
    """(rows, entries) -> scale (rows,), zero (rows,) of the least squared error found over each row's kept entries.

    From the min-max grid and from several ranges around the mean, rounding and the least-squares grid for the rounded
    codes take turns; the best goes on. A row that keeps nothing gets scale 1.
    """
    top = top_codes(bits, W).unsqueeze(1)
    W, kept = _kept_first(W, mask.bool())
    count = kept.sum(1, keepdim=True)
    mean = (W * kept).sum(1, keepdim=True) / count.clamp(min=1)
    reach = ((W - mean) * kept).abs().amax(1, keepdim=True)

    def measured(scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = nearest_codes(W, scale, zero, top)
        return codes.sub_(zero).mul_(scale).sub_(W).mul_(kept).square_().sum(1, keepdim=True), scale, zero

    def refined(trial: tuple[Tensor, ...], best: tuple[Tensor, ...], turns: int) -> tuple[Tensor, ...]:
        for _ in range(turns):
            best = _better(trial, best)
            trial = measured(*_least_squares(W, kept, nearest_codes(W, trial[1], trial[2], top), top))
        return _better(trial, best)

    scale, zero = minmax_grid(W, kept, bits)
    start = measured(scale.unsqueeze(1), zero.unsqueeze(1))
    best = refined(start, start, TURNS)
    for share in SHARES:
        scale = (2 * share * reach / top).clamp(min=TINY)
        best = refined(measured(scale, storable_zero(top / 2 - mean / scale, top)), best, TURNS)
    best = refined(best, best, LAST_TURNS)
    return best[1].masked_fill(count == 0, 1).squeeze(1), best[2].squeeze(1)


def _kept_first(W: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's kept entries moved to its front -> (rows, most kept), and 1 where there is one; the rest goes."""
    count = mask.sum(1, keepdim=True)
    kept = (torch.arange(max(int(count.max()), 1), device=W.device) < count).to(W.dtype)
    together = torch.zeros_like(kept)
    together[kept.bool()] = W[mask]
    return together, kept


def _better(trial: tuple[Tensor, ...], best: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """(error, scale, zero) of whichever has the smaller error, row by row."""
    smaller = trial[0] < best[0]
    return tuple(torch.where(smaller, new, old) for new, old in zip(trial, best, strict=True))


def _least_squares(W: Tensor, kept: Tensor, codes: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """The grid of the least squared error for given codes, its zero made storable before its scale is found."""
    count = kept.sum(1, keepdim=True).clamp(min=1)
    code_mean, mean = (codes * kept).sum(1, keepdim=True) / count, (W * kept).sum(1, keepdim=True) / count
    spread = (codes - code_mean) * kept
    slope = (spread * W).sum(1, keepdim=True) / spread.square().sum(1, keepdim=True).clamp(min=TINY)
    zero = storable_zero(code_mean - mean / slope.clamp(min=TINY), top)
    steps = (codes - zero) * kept
    scale = (steps * W).sum(1, keepdim=True) / steps.square().sum(1, keepdim=True).clamp(min=TINY)
    return scale.clamp(min=TINY), zero


def storable_zero(zero: Tensor, top: Tensor) -> Tensor:
    """The nearest zero that one byte can say: 0 .. 255 times 2^b / 256."""
    return zero_from_byte(zero_byte(zero, top), top)


def zero_byte(zero: Tensor, top: Tensor) -> Tensor:
    """The byte of a zero, as a floating-point whole number."""
    return (zero * (256 / (top + 1))).nan_to_num().round().clamp(0, 255)


def zero_from_byte(byte: Tensor, top: Tensor) -> Tensor:
    """The zero that a byte says; exact in 16 bits."""
    return byte * ((top + 1) / 256)
