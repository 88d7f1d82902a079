"""BitDelta's training: the scales of all matrices together, so that the logits follow the fine-tuned model's."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from impart.checkpoint import Checkpoint
from impart.encodings.encoded import Encoded
from impart.report import progress
from quantize.whole_model import dtype_on, frozen_model, linear_module

log = logging.getLogger(__name__)


class ScaledSigns(nn.Module):
    """Weight W = base + exp(log_ratio) * delta, delta holding signs times mu as they are stored, in a linear layer."""

    def __init__(self, base: Tensor, signs: Tensor, mu: float, bias: Tensor | None):
        super().__init__()
        self.base, self.signs, self.mu, self.bias = base, signs, mu, bias  # (m, n), (m, n) int8, 1 / keep ratio in mu
        self.log_ratio = nn.Parameter(torch.zeros((), device=base.device))

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.log_ratio.exp() * self.mu).to(self.base.dtype)
        return nn.functional.linear(x, self.base + scale * self.signs, self.bias)


def distilled_scales(
    base: Checkpoint,
    finetuned: Checkpoint,
    encoded: Mapping[str, Encoded],
    sequences: Tensor,
    *,
    steps: int,
    lr: float,
    batch: int,
    device: torch.device,
) -> dict[str, float]:
    """mu of every matrix after `steps` of Adam on the logits' mean squared difference. Holds both models in memory."""
    teacher, student = (frozen_model(finetuned, device) for _ in range(2))
    dtype = dtype_on(device, finetuned)
    scaled: dict[str, ScaledSigns] = {}
    for name, stored in encoded.items():
        if stored.encoding == "empty":
            continue
        module = linear_module(student, name, "distill_steps trains a scale of")
        ones = replace(stored, facts={**stored.facts, "mu": 1.0}).dense(name)  # +-1 / keep ratio
        rescale = float(ones.abs().max())
        scaled[name] = ScaledSigns(
            base.tensor(name).to(device, dtype),
            ones.sign().to(device, torch.int8),
            stored.facts["mu"] * rescale,
            getattr(module, "bias", None),
        )
        parent, _, leaf = name.removesuffix(".weight").rpartition(".")
        setattr(student.get_submodule(parent), leaf, scaled[name])
    optimizer = torch.optim.Adam([module.log_ratio for module in scaled.values()], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for step in progress(range(steps), what="distilling scales", unit="step"):
        rows = [(step * batch + i) % len(sequences) for i in range(batch)]
        ids = sequences[rows].to(device)
        with torch.no_grad():
            wanted = teacher(input_ids=ids, use_cache=False).logits.float()
        loss = (student(input_ids=ids, use_cache=False).logits.float() - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in (0, steps - 1):
            log.info(
                "distillation step %d of %d: mean squared difference of the logits %.5f",
                step + 1,
                steps,
                float(loss.detach()),
            )
    return {name: encoded[name].facts["mu"] * float(module.log_ratio.detach().exp()) for name, module in scaled.items()}
