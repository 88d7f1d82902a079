"""D-QReLO: the signs of dW, and a low-rank approximation of what they leave (Li et al. 2026, arXiv 2604.16940).

dW^ = alpha sign(dW) + SVD_r(dW - alpha sign(dW)), alpha = mean |dW|. It needs no data. A bit per entry is a sixteenth
of the delta in 16 bit, so that only ratios below 16 leave bytes for the triplets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from impart.config import option
from impart.encodings import empty, head_and_tail, signs, svd
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.method import Matrix
from impart.packing import packed_bytes
from impart.svd import delta_svd
from quantize.one_step import OneStepMethod

ENCODINGS = {"head": "svd", "tail": "signs"}


@dataclass(frozen=True, kw_only=True)
class DQReLO(OneStepMethod):
    """One bit for every entry, and as many triplets of the residual in fp16 as all stored bytes allow."""

    name: ClassVar = "dqrelo"
    label: ClassVar = "D-QReLO"

    compression_ratio_qt: float = option(8.0, low=1.0, help="16-bit size of the linear layers over their stored bytes")

    @property
    def seeded(self) -> bool:
        return False

    def check(self, name: str, m: int, n: int) -> None:
        if self.rank(name, m, n) < 1:
            raise InputError(
                f"{name} ({m} x {n}): compression_ratio_qt={self.compression_ratio_qt:g} leaves no byte for a triplet "
                "beside one bit per entry; take a lower ratio, below 16"
            )

    def rank(self, name: str, m: int, n: int) -> int:
        """Triplets of the residual of an (m, n) matrix that fit beside the signs."""
        size = 2 * m * n / self.compression_ratio_qt
        headers = head_and_tail.expected_header_bytes(name, ENCODINGS, int(size))
        return min(m, n, int((size - headers - packed_bytes(m * n, 1)) / (2 * (m + n) + svd.VALUE_BYTES)))

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        return int(2 * sum(m * n for m, n in shapes.values()) / self.compression_ratio_qt)

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        (m, n), name, dW = matrix.shape, matrix.name, matrix.dense()
        if not torch.count_nonzero(dW):
            return empty.write((m, n))
        alpha = float(dW.abs().mean(dtype=torch.float64))
        tail = signs.write(dW, alpha, name=name, keep_ratio=1.0, seed=seed)
        U, s, V = delta_svd(dW - tail.dense(name), self.rank(name, m, n))
        r = int(torch.count_nonzero(s))
        return head_and_tail.write(svd.write(U[:, :r], s[:r], V[:, :r], torch.float16), tail) if r else tail
