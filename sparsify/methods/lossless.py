"""Lossless: the fine-tuned weights bit for bit, in as few bytes as their steps from the base's take.

For deltas that have to be exact, and for reinforcement learning, which leaves most 16-bit weights as they were.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from impart.config import option
from impart.encodings import lossless
from impart.encodings.encoded import Encoded
from impart.method import Matrix
from sparsify.faces import PlainMethod


@dataclass(frozen=True, kw_only=True)
class Lossless(PlainMethod):
    """Changed entries with the gaps between them, or all entries, whichever Zstandard makes smaller."""

    name: ClassVar = "lossless"
    label: ClassVar = "Lossless"
    needs_svd: ClassVar = False
    reads_weights: ClassVar = True

    level: int = option(1, help="of Zstandard: higher ones take longer for a few percent", low=1, high=22)

    @property
    def seeded(self) -> bool:
        return False

    def rank(self, name: str, m: int, n: int) -> int:
        return 0

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        return lossless.write(*matrix.weights(), self.level)

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        return sum(2 * m * n for m, n in shapes.values())
