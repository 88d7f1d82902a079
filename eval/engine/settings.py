"""How a model is run, and how much text it takes."""

from dataclasses import dataclass
from typing import Any

from impart.errors import InputError

LONGEST = 8192  # default cap on prompt + answer: every benchmark fits, and a 128k model's cache need not


@dataclass(frozen=True)
class EngineSettings:
    """How a model is run. Only `backend`, `dtype` and `max_model_len` are meant to change what it answers."""

    backend: str = "auto"  # auto | vllm | hf
    dtype: str = "auto"  # auto (the checkpoint's own) | fp16 | bf16 | fp32
    max_model_len: int | None = None  # tokens of prompt + answer; None: the model's positions, at most LONGEST
    tensor_parallel: int | None = None  # GPUs; None: as many as there are and the heads can be split over
    gpu_memory: float = 0.9  # share of each GPU that vLLM may take
    batch_size: int = 64  # prompts at a time of the hf backend
    seed: int = 0


def positions_of(config: Any) -> int:
    """The longest sequence that the model was made for."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or LONGEST


def longest_sequence(config: Any, wanted: int | None) -> int:
    """Tokens that prompt and answer may have together."""
    positions = positions_of(config)
    if wanted is not None and wanted > positions:
        raise InputError(f"--max_model_len {wanted}: the model has only {positions} positions")
    return wanted or min(positions, LONGEST)
