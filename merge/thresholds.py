"""The exact magnitude below which TIES trims, from histograms instead of a sort.

The magnitude bits of a float32 (the number without its sign bit) order like the magnitudes themselves. A histogram of
the upper 16 of these 31 bits finds the bucket that holds the wanted rank, a histogram of the lower 15 finds the value
inside it: two passes over the entries, 0.8 MB of counts, and the very value that a sort or `kthvalue` gives. For the
difference of two 16-bit tensors one histogram would not do: the difference of two bfloat16 numbers has up to 24
significant bits. For large tensors a sample says where the value probably is; one histogram of all magnitudes there,
and the number of those below, then prove it in a single pass or fall back on the two.
"""

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

LOW_BITS = 15  # the upper 16 of 31 magnitude bits are counted first
UPPER_BUCKETS, LOWER_BUCKETS = 1 << (31 - LOW_BITS), 1 << LOW_BITS
WINDOW = 1 << 18  # float32 numbers around the guess: 1.6 to 3.1 % of its value
SAMPLED = 1 << 18  # entries; their quantile is then off by 0.2 %, and few windows miss
WORTH_A_GUESS = 1 << 22  # entries
GATHERED = 1 << 21  # entries per histogram call, which makes a table of counts every time

Blocks = Callable[[], Iterable[Tensor]]


def trimmed_count(count: int, trim: float) -> int:
    """How many of `count` entries a trim ratio sets to zero, rounded down; the ratio is the decimal as written, so
    that 0.29 of 100 entries is 29 and not the 28 of binary arithmetic."""
    if not 0 <= trim <= 1:
        raise ValueError(f"trim={trim}: the share of entries set to zero lies between 0 and 1")
    return int(Fraction(repr(float(trim))) * count)


def trim_threshold(delta: Tensor, trim: float) -> float:
    """The smallest magnitude that survives when `trim` of the entries of `delta` (any shape) are set to zero.

    Entries with |d| >= threshold stay. Where all magnitudes differ, exactly `trimmed_count` entries go. Entries that
    tie with the smallest survivor all stay, whatever their position: fewer go then, and no order of entries or of
    models can matter. trim 0 gives 0 (all stay), trim 1 gives infinity (none does).
    """
    flat = delta.reshape(-1)
    rank = trimmed_count(len(flat), trim)
    if flat.dtype == torch.float64 and 0 < rank < len(flat):  # no checkpoint's, but a reference computation's
        return float(flat.abs().kthvalue(rank + 1).values)
    sample = flat[:: max(1, len(flat) // SAMPLED)] if len(flat) >= WORTH_A_GUESS else None
    return threshold_of_blocks(lambda: [flat], len(flat), trim, sample)


def threshold_of_blocks(blocks: Blocks, count: int, trim: float, sample: Tensor | None = None) -> float:
    """`trim_threshold` of a tensor that comes in float32 blocks and never is whole in memory.

    `blocks()` is called up to three times and must give the same `count` finite entries every time. `sample`: some of
    them; it decides how many times, never the result.
    """
    rank = trimmed_count(count, trim)  # 0-based rank, in ascending magnitude, of the smallest survivor
    if rank == 0:
        return 0.0
    if rank == count:
        return float("inf")
    if sample is not None:
        guess = sample.abs().kthvalue(min(sample.numel(), int(rank / count * sample.numel()) + 1)).values
        first = max(0, int(guess.view(torch.int32)) - WINDOW // 2)
        found = _rank_in_window(blocks, first, WINDOW, rank)
        if found is not None:
            return found
    counts = _histogram(blocks(), lambda bits: bits.bitwise_right_shift_(LOW_BITS), UPPER_BUCKETS)
    exact = _rank_in_window(blocks, _bucket_of_rank(counts, rank) << LOW_BITS, LOWER_BUCKETS, rank)
    assert exact is not None  # else blocks() gave other entries than the first time
    return exact


def _rank_in_window(blocks: Blocks, first: int, width: int, rank: int) -> float | None:
    """The magnitude of this rank if its bits are among the `width` numbers from `first` on, else None."""

    def place(bits: Tensor) -> Tensor:  # what lies below or above the window goes to one extra place on either side
        return bits.sub_(first - 1).clamp_(0, width + 1)

    bucket = _bucket_of_rank(_histogram(blocks(), place, width + 2), rank)
    if not 1 <= bucket <= width:
        return None
    return torch.tensor(first + bucket - 1, dtype=torch.int32).view(torch.float32).item()


def _histogram(blocks: Iterable[Tensor], key: Callable[[Tensor], Tensor], buckets: int) -> Tensor:
    """Counts (buckets,) of key(magnitude bits); `key` may overwrite what it is given."""
    counts: Tensor | int = 0
    for bits in _magnitude_bits(blocks):
        counts = torch.bincount(key(bits), minlength=buckets).add_(counts)
    assert isinstance(counts, Tensor)  # `blocks` is not empty
    return counts


def _magnitude_bits(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """All entries' magnitude bits (int32), gathered in one buffer: fresh memory takes longer than the counting."""
    buffer, filled = torch.empty(0), 0
    for block in blocks:
        if block.dtype != torch.float32:
            raise ValueError(f"thresholds are taken of float32 deltas, not of {block.dtype}")
        for piece in block.reshape(-1).split(GATHERED):
            if not buffer.numel():
                buffer = torch.empty(GATHERED, dtype=torch.float32, device=piece.device)
            if filled + len(piece) > GATHERED:
                yield buffer[:filled].view(torch.int32)
                filled = 0
            torch.abs(piece, out=buffer[filled : filled + len(piece)])
            filled += len(piece)
    if filled:
        yield buffer[:filled].view(torch.int32)


def _bucket_of_rank(counts: Tensor, rank: int) -> int:
    """The bucket that holds the entry of this 0-based rank."""
    return int(torch.searchsorted(counts.cumsum(0), rank, right=True))
