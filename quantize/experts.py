"""What goes into the matrices of experts that transformers runs as one module.

Three forms hold all families of transformers: experts that are given tokens and a choice of experts for each (Mixtral,
Qwen3-MoE, DeepSeek, GraniteMoe, gpt-oss ...), Llama 4's, which run every expert on all tokens, zero where it was not
chosen, and JetMoe's, a linear module that is given its tokens sorted by expert.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

INTO = ("gate_up_proj", "up_proj", "weight")  # parameters that read a module's own input


def is_expert_module(module: nn.Module) -> bool:
    """Whether one of the module's own parameters holds a matrix for every expert."""
    return any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))


def order_of_use(parameter: str) -> int:
    """Parameters of one module with the same number read the same tokens; the lower one is used first."""
    return 0 if parameter in INTO else 1


def expert_inputs(module: nn.Module, arguments: Sequence[Any], parameter: str) -> Callable[[int], Tensor] | None:
    """expert -> the tokens (t, n) that its matrix in `parameter` is given by this call; None for a form not known here.

    arguments: of the module's forward.
    """
    tokens = _tokens(module, arguments)
    if tokens is None or order_of_use(parameter) == 0:
        return tokens
    return lambda expert: _activated(module, expert, tokens(expert))


def _tokens(module: Any, arguments: Sequence[Any]) -> Callable[[int], Tensor] | None:
    """expert -> the tokens (t, d) that are routed to it."""
    hidden = arguments[0]
    if len(arguments) == 1 and not hasattr(module, "_apply_gate"):
        every = hidden.view(module.num_experts, -1, hidden.shape[-1])
        return lambda expert: every[expert][every[expert].any(dim=1)]
    if len(arguments) == 2:
        parts = hidden.split(arguments[1], dim=0)
        return lambda expert: parts[expert]
    if len(arguments) == 3 and hasattr(module, "has_gate"):
        chosen = arguments[1]
        flat = hidden.reshape(-1, hidden.shape[-1])
        return lambda expert: flat[(chosen == expert).view(len(flat), -1).any(dim=1)]
    return None


def _activated(module: Any, expert: int, tokens: Tensor) -> Tensor:
    """What the expert's second matrix is given: its activation of what the first makes of the tokens (t, d)."""
    name = "gate_up_proj" if hasattr(module, "gate_up_proj") else "up_proj"
    weight, bias = getattr(module, name)[expert], getattr(module, f"{name}_bias", None)
    transposed = getattr(module, "is_transposed", True)  # Llama 4's, which has no such mark, is
    inner = tokens @ (weight if transposed else weight.T)
    if bias is not None:
        inner = inner + bias[expert]
    if not getattr(module, "has_gate", True):
        return module.act_fn(inner)
    if hasattr(module, "_apply_gate"):
        return module._apply_gate(inner)
    gate, up = inner.chunk(2, dim=-1)
    return up * module.act_fn(gate)
