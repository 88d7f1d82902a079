"""The fine-tuned model as a whole, for methods that follow its gradients; all others go through it layer by layer."""

import torch
from torch import nn

from impart.checkpoint import Checkpoint
from impart.errors import InputError
from impart.pretrained import load_model


def frozen_model(checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """The model in evaluation mode; no parameter asks for a gradient."""
    model: nn.Module = load_model(checkpoint.path, checkpoint.source, dtype=dtype_on(device, checkpoint))
    return model.to(device).eval().requires_grad_(False)


def dtype_on(device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """The model's own on a GPU; fp32 on a CPU, where 16 bit are slow."""
    return checkpoint.model_dtype() if device.type == "cuda" else torch.float32


def linear_module(model: nn.Module, name: str, setting: str) -> nn.Linear:
    """The module whose weight has that name; InputError where the model has no such module, as of experts in one.

    `setting`: the method's setting that asks for it, and why.
    """
    try:
        module = model.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        module = None
    if not isinstance(module, nn.Linear):
        raise InputError(
            f"{setting} every linear module, and transformers' {type(model).__name__} has none for {name}; leave it "
            "out, or this type of weight"
        )
    return module
