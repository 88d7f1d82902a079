"""How many bytes of what changed are compressed, and how many travel whole, by kind: said before long work."""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from impart.architecture import weight_type
from impart.artifact import Delta
from impart.checkpoint import Checkpoint
from impart.dtypes import DTYPES
from impart.matrices import tensor_of

log = logging.getLogger(__name__)

MOST_WHOLE = 0.1  # share of the bytes; above, there is a warning
MOST_KINDS = 8  # that are listed


@dataclass(frozen=True)
class Coverage:
    """Bytes of the fine-tuned model's parameters by kind: those of compressed matrices, and those that travel whole.

    `is_bound`: it is not known yet which of them changed; all are counted.
    """

    compressed: Mapping[str, int]
    whole: Mapping[str, int]
    is_bound: bool = False

    @property
    def share(self) -> float:
        """Of the bytes, those that travel whole."""
        whole = sum(self.whole.values())
        return whole / max(whole + sum(self.compressed.values()), 1)

    def summary(self) -> str:
        """One line, without kinds."""
        compressed, whole = sum(self.compressed.values()), sum(self.whole.values())
        return f"of {compressed + whole:,} bytes, {whole:,} ({self.share:.1%}) travel whole{self._condition}"

    def lines(self) -> list[str]:
        """What is compressed and what travels whole, a line each."""
        parts = (("compressed", self.compressed, 1 - self.share), ("travels whole", self.whole, self.share))
        return [
            f"{what}{self._condition}: {sum(by_kind.values()):,} bytes ({part:.1%}): {_listed(by_kind)}"
            for what, by_kind, part in parts
        ]

    def warning(self) -> str | None:
        """What to say where too much travels whole."""
        if self.share <= MOST_WHOLE:
            return None
        return (
            f"{self.share:.1%} of the bytes travel whole{self._condition}, so that the whole checkpoint gets at most "
            f"{1 / self.share:.1f} times smaller, whatever the ratio"
        )

    @property
    def _condition(self) -> str:
        return " where they changed" if self.is_bound else ""

    def say(self, prefix: str = "") -> None:
        """The lines, and the warning."""
        for line in self.lines():
            log.info("%s%s", prefix, line)
        if warning := self.warning():
            log.warning("%s%s", prefix, warning)

    def facts(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"compressed": dict(self.compressed), "whole": dict(self.whole), "share_whole": self.share}


def coverage(matrices: Mapping[str, int], extras: Mapping[str, int], *, is_bound: bool = False) -> Coverage:
    """Of bytes by the names of the compressed matrices and of the parameters that travel whole."""
    return Coverage(_by_kind(matrices), _by_kind(extras), is_bound)


def of_checkpoint(checkpoint: Checkpoint, matrices: list[str]) -> Coverage:
    """The most that can have changed, known from the headers of the files."""
    compressed = set(map(tensor_of, matrices))
    whole = {name: checkpoint.spec(name).nbytes for name in checkpoint.names() if name not in compressed}
    return coverage({name: checkpoint.spec(name).nbytes for name in matrices}, whole, is_bound=True)


def of_delta(delta: Delta) -> Coverage:
    """What an artifact holds; matrices that did not change are left out."""
    entries, extras = delta.manifest["matrices"], delta.manifest["extras"]
    sizes = {
        name: math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
        for name, entry in entries.items()
        if entry["encoding"] != "empty"
    }
    return coverage(sizes, {name: extra["bytes"] for name, extra in extras.items()})


def _by_kind(sizes: Mapping[str, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, size in sizes.items():
        found[weight_type(name)] += size
    return found


def _listed(by_kind: Mapping[str, int]) -> str:
    """`mlp.up_proj 1,024, ...`, the largest first."""
    kinds = sorted(by_kind, key=lambda kind: (-by_kind[kind], kind))
    more = f", {len(kinds) - MOST_KINDS} kinds more" if len(kinds) > MOST_KINDS else ""
    return (", ".join(f"{kind} {by_kind[kind]:,}" for kind in kinds[:MOST_KINDS]) or "nothing") + more
