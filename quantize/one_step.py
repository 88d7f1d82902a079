"""Quantizations that go from the two models to codes in one step, matrix by matrix, such as BitDelta."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from impart.artifact import Delta
from impart.checkpoint import Checkpoint, open_checkpoint
from impart.compress import compress, expected_work
from impart.costs import tell
from impart.errors import InputError
from impart.method import Method
from impart.report import Report
from impart.sources import Origin, Source, open_source
from impart.units import units


class Calibration(Protocol):
    """What a method may ask of the calibration text."""

    @property
    def sequences(self) -> Tensor:
        """Token ids (nsamples, seqlen)."""

    def settings(self) -> dict[str, Any]:
        """What delta.json says of the text."""


@dataclass(frozen=True)
class Setting:
    """Where a method that is trained finds its models and text."""

    base: Checkpoint
    finetuned: Checkpoint
    source: Source
    calibration: Calibration
    batch: int
    seed: int
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class OneStepMethod(Method):
    """A method whose `encode` gives a quantized matrix."""

    needs_svd = False

    @property
    def needs_text(self) -> bool:
        """Whether calibration text is read; else the data set on the command line is not looked at."""
        return False

    def planned(self, source: Source, base: Checkpoint) -> Method:
        """The method after it has seen all matrices; itself where it compresses each one without the others."""
        return self

    def trained(self, setting: Setting) -> Method:
        """The method after it has seen the text; only asked for where `needs_text`."""
        raise NotImplementedError


def one_step_methods() -> dict[str, type[OneStepMethod]]:
    """The methods of quantize/methods/, by name."""
    return units("quantize.methods", OneStepMethod)


def quantize_models(
    path: str | Path,
    method: OneStepMethod,
    base_model: str | None,
    finetuned: Checkpoint,
    calibration: Calibration | None,
    *,
    batch: int,
    seed: int,
    device: torch.device,
    report: Report,
    overwrite: bool,
    force: bool,
    dry_run: bool = False,
) -> Delta | None:
    """Both models, checked -> every matrix by the method -> artifact; None where only the cost is told."""
    if base_model is None:
        raise InputError(f"baseModel is missing: {method.label} takes the delta between it and the fine-tuned model")
    source = open_source(Origin(base_model=base_model, ftm_dir=finetuned.source), method, device, force=force)
    if dry_run:
        tokens = calibration.sequences.numel() if calibration else 0
        tell(path, replace(expected_work(source, method), tokens=tokens), device)
        return None
    base = open_checkpoint(base_model)
    used: Method = method.planned(source, base)
    if calibration is not None:
        setting = Setting(base, finetuned, source, calibration, batch, seed, device)
        used = method.trained(setting)
    delta = compress(source, used, path, kind="quantized", seed=seed, overwrite=overwrite, report=report)
    assert delta is not None  # one process
    return delta
