"""What the report says of a merge: how much was trimmed, how often models pulled in opposite directions, how large
the deltas are. Summed over blocks on the device, fetched once per parameter."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Tally:
    """Sums over the entries of one parameter, or by `combined` of many."""

    def __init__(self, models: Sequence[str], device: torch.device | str = "cpu"):
        self.models, self.entries = list(models), 0
        self._shared = torch.zeros(4, dtype=torch.float64, device=device)  # base^2, merged^2, conflicts, cancelled
        self._own = torch.zeros(len(models), 3, dtype=torch.float64, device=device)  # delta^2, non-zero, after trimming

    def add(self, base: Tensor, deltas: Sequence[Tensor], trimmed: Sequence[Tensor], merged: Tensor) -> None:
        """Counts one block; `trimmed` is what took part in the merge of `deltas`."""
        self.entries += base.numel()
        high, low = _folded(torch.maximum, trimmed).sign(), _folded(torch.minimum, trimmed).sign()
        conflict = high.mul_(low).clamp_max_(0).neg_()  # 1 where both signs are there, else 0
        agreed = conflict * merged.sign().abs_()
        self._shared += torch.stack(
            [_squares(base), _squares(merged), conflict.sum().double(), (conflict.sum() - agreed.sum()).double()]
        )
        self._own += torch.stack(
            [
                torch.stack([_squares(delta), _nonzero(delta), _nonzero(kept)])
                for delta, kept in zip(deltas, trimmed, strict=True)
            ]
        )

    def broken(self) -> list[str]:
        """Names of the models with NaN or Inf among their deltas; 'base' where it is the base's own."""
        shared, own = self._shared.cpu(), self._own.cpu()
        if not bool(torch.isfinite(shared[0])):
            return ["base"]
        return [name for name, row in zip(self.models, own, strict=True) if not bool(torch.isfinite(row[0]))]

    def rows(self) -> dict:
        """The numbers of the report: norms, and shares of all entries.

        `trimmed` was set to zero by the trim, `zeros` adds what was zero before; `sign_conflicts` has deltas of both
        signs after the trim, `cancelled` is the part of them whose merged delta is 0.
        """
        (base, merged, conflicts, cancelled), entries = self._shared.tolist(), max(self.entries, 1)
        return {
            "entries": self.entries,
            "base_norm": base**0.5,
            "merged_delta_norm": merged**0.5,
            "sign_conflicts": conflicts / entries,
            "cancelled": cancelled / entries,
            "models": {
                name: {"delta_norm": square**0.5, "trimmed": (nonzero - kept) / entries, "zeros": 1 - kept / entries}
                for name, (square, nonzero, kept) in zip(self.models, self._own.tolist(), strict=True)
            },
        }

    @staticmethod
    def combined(tallies: Iterable["Tally"]) -> "Tally":
        """The sum of the tallies of several parameters of the same models."""
        tallies = list(tallies)
        total = Tally(tallies[0].models)
        for tally in tallies:
            total.entries += tally.entries
            total._shared += tally._shared.cpu()
            total._own += tally._own.cpu()
        return total


def _squares(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values).double().square()


def _nonzero(values: Tensor) -> Tensor:
    return values.sign().abs_().sum().double()  # a fifth of count_nonzero's time on a CPU


def _folded(combine, tensors: Sequence[Tensor]) -> Tensor:
    result = tensors[0]
    for tensor in tensors[1:]:
        result = combine(result, tensor)
    return result
