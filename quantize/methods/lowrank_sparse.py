"""Low rank plus signs: leading triplets of dW in few bits, and signs of a random sample of what they leave.

dW^ = L + a mean|R| sign(R) xi / f, where L is the best approximation of dW of rank r, in b bits by fitted grids,
R = dW - L, xi ~ Bernoulli(f) entry by entry from the seed, and a is tail_scale. A matrix takes r (b (m + n) + 32) bits,
one bit for each of its f m n signs, and its part of the shard's header. Calibration text is read for budget:
information alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from impart.bit_plan import BITS
from impart.checkpoint import Checkpoint
from impart.config import option
from impart.encodings import empty, head_and_tail, quantized_vectors, signs
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.masks import LEVELS
from impart.method import FactoredMatrix, Matrix, Method
from impart.sources import Source
from quantize.one_step import OneStepMethod, Setting
from quantize.vectors import rounded_triplets
from sparsify.allocation import budget_bits
from sparsify.information import information_of, read_information, said
from sparsify.shares import (
    AUTO,
    KAPPA,
    SHARES,
    TINY,
    Budget,
    best_alpha,
    budget_of,
    check_tail_scale,
    least_error_shares_of,
)

ENCODINGS = {"head": "quantized_vectors", "tail": "signs"}
GRID_ERRORS = {2: 0.24, 3: 0.075, 4: 0.023, 8: 0.00011}  # of u v^T in that many bits, squared and relative
ROOM = 1.1  # an estimate of bytes leaves a tenth for masks that keep more, and for what small matrices round up


@dataclass(frozen=True, kw_only=True)
class LowRankSigns(OneStepMethod):
    """`head` of the bytes for triplets, one bit each for as many signs as the rest holds; every stored byte counts."""

    name: ClassVar = "lowrank_sparse"
    label: ClassVar = "LowRank+Sparse-Qt"
    kappa: ClassVar = KAPPA  # of the rules for head and tail_scale (sparsify/shares.py)

    compression_ratio_qt: float = option(
        help="CR_qt: 16-bit size of the linear layers over every stored byte of them", low=1.0
    )
    head: float | str = option(
        AUTO,
        help="share of the bytes for the leading triplets, the rest is signs; auto: by the spectrum of each matrix",
        low=0,
        high=1,
        words=(AUTO,),
    )
    head_bits: int = option(3, help="bits of every entry of the triplets", choices=BITS)
    tail_scale: float | str = option(
        AUTO,
        help="a: factor of the tail; 1 has mean|R| sign(R) in the mean, norm(R)^2 / (m n mean|R|^2), about 1.57, has R "
        "itself along R; auto: by f and R",
        low=0,
        high=2,
        words=(AUTO,),
    )

    budget: str = option(
        "matrix",
        choices=("matrix", "model", "information"),
        help="matrix: each matrix has the ratio; model: all together have it, and bytes go where they lower the sum of "
        "expected errors over norm(W)^2 most; information: the sum of expected errors times the Fisher information on "
        "the calibration text",
    )
    information: str | None = option(
        None,
        help="file of quantize/information.py, which budget: information then reads in the place of the text: one for "
        "all ratios",
    )

    def resolved(self) -> Self:
        check_tail_scale(self.tail_scale)
        if self.budget != "matrix" and self.head != AUTO:
            raise InputError(
                f"budget: {self.budget} divides the bytes by the rule of head: auto, not head={self.head}; leave one "
                "out"
            )
        if self.information is not None:
            if self.budget != "information":
                raise InputError(f"information={self.information} is for budget: information, not {self.budget}")
            read_information(self.information)
        return self

    @property
    def seeded(self) -> bool:
        return self.head != 1

    @property
    def needs_text(self) -> bool:
        return self.budget == "information" and self.information is None

    def keys(self) -> dict[str, Any]:
        """The keys with their values."""
        return {field.name: getattr(self, field.name) for field in fields(LowRankSigns)}

    def settings(self) -> dict[str, Any]:
        return said(self.keys())

    def check(self, name: str, m: int, n: int) -> None:
        if self.budget == "matrix":
            self.room(name, m, n, share=1.0).check(name, f"compression_ratio_qt={self.compression_ratio_qt:g}")

    def room(self, name: str, m: int, n: int, share: float) -> Budget:
        """All bytes of an (m, n) matrix that gets `share` of its even part."""
        total = share * budget_bits(m, n, self.compression_ratio_qt)
        triplet = self.head_bits * (m + n) + 8 * quantized_vectors.overhead_bytes(m, n, 1, [], -1, masked=False)
        return budget_of(name, m, n, total, triplet, 1, ENCODINGS, self.head)

    def share(self, name: str) -> float:
        """Share of its even part that a matrix gets."""
        return 1.0

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        name, dW = matrix.name, matrix.dense()
        if not torch.count_nonzero(dW):
            return empty.write(matrix.shape)
        room = self.room(name, *matrix.shape, self.share(name))
        if self.head == AUTO:
            factors = matrix.triplets(room.rank(1.0))
            assert factors is not None  # dW is not zero
            matrix = FactoredMatrix(name, factors)
            _, r = self.least_error(room, factors[1], dW)
        else:
            r = room.rank(float(self.head))
        head, keep = self.rounded(matrix, r) if r else None, room.keep(r)
        if head and (keep < 1 / LEVELS or self.head == 1):
            return head
        R = dW - head.dense(name) if head else dW
        if head and not torch.count_nonzero(R):
            return head
        mean = float(R.abs().mean(dtype=torch.float64))
        spread = squared_norm(R) / (R.numel() * mean**2)
        a = best_alpha(keep, spread, self.kappa) * spread if self.tail_scale == AUTO else float(self.tail_scale)
        tail = signs.write(R, a * mean, name=name, keep_ratio=keep, seed=seed)
        return head_and_tail.write(head, tail) if head else tail

    def least_error(self, room: Budget, s: Tensor, dW: Tensor) -> tuple[float, int]:
        """The expected error with the best rank, and that rank: s (r,) the leading singular values of dW."""
        error = GRID_ERRORS[self.head_bits]
        return room.least_error(s, squared_norm(dW), spread=math.pi / 2, error=error, kappa=self.kappa)

    def planned(self, source: Source, base: Checkpoint) -> Method:
        if self.budget == "model":
            return self.of_model(source, lambda name: 1 / max(TINY, squared_norm(base.tensor(name))))
        if self.information is not None:
            return self.of_model(source, information_of(self.information, source.matrices).__getitem__)
        return self

    def trained(self, setting: Setting) -> Method:
        return LowRankSignsByText(**self.keys(), setting=setting)

    def of_model(self, source: Source, weight: Callable[[str], float]) -> Method:
        """The method with the bytes of the model divided by expected errors times `weight`."""
        return LowRankSignsOfModel(**self.keys(), by_name=self.shares(all_of(source), weight))

    def shares(self, matrices: Sequence[Matrix], weight: Callable[[str], float]) -> dict[str, float]:
        """Shares of their even parts that give the matrices the least sum of expected errors times `weight`."""
        return least_error_shares_of(matrices, self.expected_errors, weight)

    def expected_errors(self, matrix: Matrix) -> np.ndarray | None:
        """J (steps,) of a matrix at SHARES of its even part; None for a delta of zeros."""
        rooms = [self.room(matrix.name, *matrix.shape, float(share)) for share in SHARES]
        triplets = matrix.triplets(rooms[-1].rank(1.0))
        if triplets is None:
            return None
        s, dW = triplets[1], matrix.dense()
        return np.array([self.least_error(room, s, dW)[0] if room.is_enough else math.inf for room in rooms])

    def rounded(self, matrix: Matrix, rank: int) -> Encoded:
        """The leading triplets in head_bits; of a delta of lower rank, all of them."""
        triplets = matrix.triplets(rank)
        assert triplets is not None  # dW is not zero
        r = min(rank, int(torch.count_nonzero(triplets[1])))
        U, s, V = (part[..., :r] for part in triplets)
        return rounded_triplets((U, s, V), torch.full((r,), self.head_bits, device=s.device))

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        return int(ROOM * 2 * sum(m * n for m, n in shapes.values()) / self.compression_ratio_qt)


@dataclass(frozen=True, kw_only=True)
class LowRankSignsOfModel(LowRankSigns):
    """The method with the bytes of one model divided: `by_name` has the share of its even part for each matrix."""

    by_name: Mapping[str, float]

    def share(self, name: str) -> float:
        return self.by_name[name]


@dataclass(frozen=True, kw_only=True)
class LowRankSignsByText(LowRankSigns):
    """The method with the bytes divided by Fisher information, when the first matrix is encoded."""

    setting: Setting

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self.setting.calibration.settings()}

    def share(self, name: str) -> float:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> Mapping[str, float]:
        from quantize.information import fisher_information  # imports the model classes of transformers

        setting = self.setting
        information = fisher_information(
            setting.finetuned,
            setting.source.matrices,
            list(setting.calibration.sequences),
            seed=setting.seed,
            device=setting.device,
        )
        return self.shares(all_of(setting.source), information.__getitem__)


def all_of(source: Source) -> list[Matrix]:
    """The matrices of both models, each read when it is asked for."""
    return [source.matrix(name) for name in source.matrices]


def squared_norm(W: Tensor) -> float:
    """norm(W)^2."""
    return float(W.double().square().sum())
