"""One parameter of the merged model from one parameter of every model, in blocks of rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from merge.method import MergeMethod
from merge.models import Parameter
from merge.sums import add_delta, trim_to
from merge.tally import Tally
from merge.thresholds import SAMPLED, WORTH_A_GUESS, threshold_of_blocks
from merge.vocabulary import MISSING

# Entries. On a CPU a block of float32 is half the megabyte from which on freed memory goes back to the system (see
# impart/device.py): fresh memory for every block would double the time. On a GPU enough to keep it busy.
BLOCK = {"cpu": 1 << 17, "cuda": 1 << 25}
SAMPLED_ROWS = 128  # for a guess at the threshold


@dataclass(frozen=True)
class Part:
    """One model's share in a parameter. `rows`: where each merged row stands in it, None where nothing moved."""

    name: str
    parameter: Parameter
    rows: Tensor | None
    weight: float = 1.0


class ParameterMerge:
    """The base's and the models' parts of one parameter of shape `shape`, on their way to the merged tensor."""

    def __init__(
        self, base: Part, models: Sequence[Part], shape: tuple[int, ...], method: MergeMethod, device: torch.device
    ):
        self._base, self._models, self._shape, self._method, self._device = base, models, shape, method, device
        row_entries = max(1, torch.Size(shape[1:]).numel())
        step = max(1, BLOCK[device.type] // row_entries)
        self._blocks = [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
        self._mean_row = self._mean_of_base(base.rows) if base.rows is not None else None

    def run(self, merged: Tensor, thresholds: Sequence[float] | None = None) -> Tally:
        """Fills `merged`, of the parameter's shape and any dtype, on the CPU. Returns its numbers for the report.

        thresholds: below which each model's entries are trimmed; None: those of this parameter alone.
        """
        thresholds = [self._threshold(model) for model in self._models] if thresholds is None else thresholds
        tally = Tally([model.name for model in self._models], self._device)
        for block in self._blocks:
            merged[block] = self._merged_block(block, thresholds, tally).to(merged.dtype).cpu()
        return tally

    def deltas(self, position: int) -> Iterator[Tensor]:
        """The task vector of one model, block by block, in float32."""
        return self._deltas(self._models[position], self._blocks)

    def _deltas(self, model: Part, blocks: Sequence[slice]) -> Iterator[Tensor]:
        for block in blocks:
            yield self._delta_rows(model, block, self._base_rows(block))[0]

    def _merged_block(self, block: slice, thresholds: Sequence[float], tally: Tally) -> Tensor:
        base = self._base_rows(block)  # float32
        pairs = [self._delta_rows(model, block, base) for model in self._models]
        trimmed = [trim_to(delta, threshold) for (delta, _), threshold in zip(pairs, thresholds, strict=True)]
        merged = self._method.merged_delta(trimmed, [model.weight for model in self._models])
        tally.add(base, [delta for delta, _ in pairs], trimmed, merged)
        result = add_delta(base, merged)
        for model, (delta, values) in zip(self._models, pairs, strict=True):
            # Where the merged delta equals a model's, take its weight: base + (model - base) can miss it by a bit.
            if values is not None and self._method.may_return(model.weight) and not _same_bits(base + delta, values):
                result = torch.where(merged == delta, values, result)
        return result

    def _threshold(self, model: Part) -> float:
        if self._method.trimmed_share == 0:
            return 0.0

        count, sample = torch.Size(self._shape).numel(), None
        if count >= WORTH_A_GUESS:
            step = max(1, self._shape[0] // SAMPLED_ROWS)
            rows = [slice(start, start + 1) for start in range(0, self._shape[0], step)]
            sample = torch.cat([row.reshape(-1) for row in self._deltas(model, rows)])
            sample = sample[:: max(1, len(sample) // SAMPLED)]
        return threshold_of_blocks(lambda: self._deltas(model, self._blocks), count, self._method.trimmed_share, sample)

    def _base_rows(self, block: slice) -> Tensor:
        rows, missing = self._read(self._base, block)
        rows = rows.to(torch.float32)
        if missing is not None and self._mean_row is not None:
            rows[missing] = self._mean_row
        return rows

    def _delta_rows(self, model: Part, block: slice, base: Tensor) -> tuple[Tensor, Tensor | None]:
        """The delta and the model's values, both float32; None for the values where only the delta is known.

        Rows of tokens that the model does not know have delta 0: it has nothing to say about them.
        """
        rows, missing = self._read(model, block)
        if model.parameter.holds_delta:
            return rows, None
        rows = rows.to(torch.float32)
        if missing is not None:
            rows[missing] = base[missing]
        return rows - base, rows

    def _read(self, part: Part, block: slice) -> tuple[Tensor, Tensor | None]:
        """The block's rows of a part, and a mask of those that it lacks (they hold its row 0) or None."""
        if part.rows is None:
            return part.parameter.read(block).to(self._device), None
        rows = part.rows[block]
        missing = rows == MISSING
        read = part.parameter.read(rows.clamp_min(0)).to(self._device)
        return read, missing.to(self._device) if bool(missing.any()) else None

    def _mean_of_base(self, rows: Tensor) -> Tensor | None:
        """The mean of the base's rows, which stands for a token that it does not know; None when it knows them all."""
        numbers = rows[rows != MISSING].sort().values
        if len(numbers) == len(rows):
            return None
        total = torch.zeros(self._shape[1:], dtype=torch.float64, device=self._device)
        for block in numbers.split(max(1, self._blocks[0].stop)):
            total += self._base.parameter.read(block).to(self._device).to(torch.float64).sum(dim=0)
        return (total / len(numbers)).to(torch.float32)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))  # 0 and -0 are equal as numbers
