"""BitDelta: dW is its signs times one scale mu per matrix; above 16x, DARE first drops entries at random.

mu is mean |dW|, the least-squares choice (Liu et al. 2024, arXiv 2402.10193); with distill_steps quantize/bitdelta.py
trains all scales together, so that the compressed model's logits follow the fine-tuned model's on calibration text.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from impart.config import option
from impart.encodings import empty, signs
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.method import Matrix, Method
from quantize.one_step import OneStepMethod, Setting

LOWEST_RATIO = 16.0  # a bit for each of 16
ROOM = 1.05  # an estimate of bytes leaves a twentieth for headers


@dataclass(frozen=True, kw_only=True)
class BitDelta(OneStepMethod):
    """One bit for every entry, or for a random share of them above a ratio of 16."""

    name: ClassVar = "bitdelta"
    label: ClassVar = "BitDelta"

    compression_ratio_qt: float = option(LOWEST_RATIO, low=1.0, help="above 16, DARE drops entries first")
    distill_steps: int = option(
        0, low=0, help="training steps of the scales on the calibration text, after the fine-tuned model's logits; "
        "0: mean |dW|"
    )  # fmt: skip
    distill_lr: float = option(0.02, low=0.0, help="learning rate of the scales, relative to mean |dW|")

    def resolved(self) -> Self:
        if self.compression_ratio_qt < LOWEST_RATIO:
            raise InputError(
                f"compression_ratio_qt={self.compression_ratio_qt:g}: BitDelta takes one bit of 16 per entry, which is "
                f"a ratio of {LOWEST_RATIO:g}; take that or more"
            )
        return self

    @property
    def seeded(self) -> bool:
        return self.compression_ratio_qt > LOWEST_RATIO

    @property
    def needs_text(self) -> bool:
        return self.distill_steps > 0

    def settings(self) -> dict[str, Any]:
        return {"compression_ratio_qt": self.compression_ratio_qt, "distill_steps": self.distill_steps}

    def expected_bytes(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        return int(ROOM * 2 * sum(m * n for m, n in shapes.values()) / self.compression_ratio_qt)

    def encode(self, matrix: Matrix, seed: int) -> Encoded:
        dW = matrix.dense()
        if not torch.count_nonzero(dW):
            return empty.write(matrix.shape)
        keep = LOWEST_RATIO / self.compression_ratio_qt
        return signs.write(dW, self.scale(matrix.name, dW), name=matrix.name, keep_ratio=keep, seed=seed)

    def scale(self, name: str, dW: Tensor) -> float:
        """mu of one matrix."""
        return float(dW.abs().mean(dtype=torch.float64))

    def trained(self, setting: Setting) -> Method:
        return TrainedBitDelta(**dataclasses.asdict(self), setting=setting)


@dataclass(frozen=True, kw_only=True)
class TrainedBitDelta(BitDelta):
    """BitDelta with distilled scales, which are trained when the first matrix is encoded: a finished run needs none."""

    setting: Setting

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "distill_lr": self.distill_lr, **self.setting.calibration.settings()}

    def scale(self, name: str, dW: Tensor) -> float:
        return self._scales[name]

    @functools.cached_property
    def _scales(self) -> Mapping[str, float]:
        from quantize.bitdelta import distilled_scales  # imports the model classes of transformers

        source, setting = self.setting.source, self.setting
        untrained = BitDelta(compression_ratio_qt=self.compression_ratio_qt)
        encoded = {name: untrained.encode(source.matrix(name), setting.seed) for name in source.matrices}
        return distilled_scales(
            setting.base,
            setting.finetuned,
            encoded,
            setting.calibration.sequences,
            steps=self.distill_steps,
            lr=self.distill_lr,
            batch=setting.batch,
            device=setting.device,
        )
