"""Greedy completions of prompts, by vLLM or by transformers: the only file that knows vLLM.

    engine = Engine("path/or/id", EngineSettings(dtype="fp16"))
    completions = engine.generate(prompts, max_tokens=1024, stop=("Instruction:",))

Both backends get the same token ids, cut at stop strings alike and end at the same end-of-sequence tokens.
"""

import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.results import Completion
from impart.errors import InputError

log = logging.getLogger(__name__)

LONGEST = 8192  # default cap on prompt + answer: every benchmark fits, and a 128k model's cache need not
VLLM_DTYPES = {"auto": "auto", "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class EngineSettings:
    """How a model is run. Only `dtype`, `backend` and `max_model_len` can change what it answers."""

    backend: str = "auto"                # auto | vllm | hf
    dtype: str = "auto"                  # auto | fp16 | bf16 | fp32
    max_model_len: int | None = None     # tokens of prompt + answer; None: the model's positions, at most LONGEST
    tensor_parallel: int | None = None   # GPUs; None: all
    gpu_memory: float = 0.9              # share of each GPU that vLLM may take
    batch_size: int = 64                 # prompts at a time of the hf backend
    seed: int = 0


class Engine:
    """A loaded model that completes prompts greedily. A context manager; `close` frees the memory."""

    def __init__(self, model: str | Path, settings: EngineSettings):
        self.model, self.settings = str(model), settings
        self.backend = chosen_backend(settings.backend)
        self.config, self.tokenizer = _config_and_tokenizer(self.model)
        self.max_model_len = _max_model_len(self.config, settings.max_model_len)
        if self.backend == "vllm":
            raise InputError("--backend vllm is coming; take --backend hf")
        from eval.generate_hf import HfModel  # imports the model classes of transformers

        self._model = HfModel(self.model, self.tokenizer, dtype=settings.dtype, max_model_len=self.max_model_len,
                              batch_size=settings.batch_size)

    def generate(self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str] = ()) -> list[Completion]:
        """The completions in the order of the prompts."""
        done = dict(self.stream(prompts, max_tokens=max_tokens, stop=stop))
        return [done[position] for position in range(len(prompts))]

    def stream(self, prompts: Sequence[str], *, max_tokens: int,
               stop: Sequence[str] = ()) -> Iterator[tuple[int, Completion]]:
        """(position, completion) as they finish, so that an interrupted run keeps what it has."""
        ids = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        for position, row in enumerate(ids):
            if len(row) >= self.max_model_len:
                raise InputError(f"prompt {position} has {len(row)} tokens, and prompt and answer together may have "
                                 f"{self.max_model_len}; raise --max_model_len, or leave the item out with --subset")
        return self._model.stream(ids, max_tokens=max_tokens, stop=tuple(stop))

    def close(self) -> None:
        """Frees the model's memory."""
        self._model = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _config_and_tokenizer(model: str):
    from transformers import AutoConfig, AutoTokenizer  # seconds of import, not needed by --rescore

    try:
        return AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise InputError(f"no model at {model!r}: {error}") from error


def _max_model_len(config, wanted: int | None) -> int:
    positions = getattr(config, "max_position_embeddings", None) or LONGEST
    if wanted is not None and wanted > positions:
        raise InputError(f"--max_model_len {wanted}: the model has only {positions} positions")
    return wanted or min(positions, LONGEST)


def chosen_backend(wanted: str) -> str:
    """vllm or hf; what `auto` took is said in the log."""
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise InputError("--backend vllm: the package vllm is not installed; install requirements-eval.txt, or take "
                         "--backend hf")
    if wanted != "auto":
        return wanted
    backend = "vllm" if installed else "hf"
    log.info("backend: %s%s", backend, "" if installed else " (vllm is not installed)")
    return backend
