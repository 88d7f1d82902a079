"""Greedy completions of prompts, by vLLM or by transformers.

    with Engine(open_overlay("path/of/delta"), EngineSettings(dtype="fp16")) as engine:
        completions = engine.generate(prompts, max_tokens=1024, stop=("Instruction:",))
        engine.swap(open_overlay("path/of/another"))

Both backends get the same token ids, end at the same end-of-sequence tokens and cut at stop strings alike.
"""

import gc
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from eval.engine.completion import Backend, Completion
from eval.engine.memory import cache_bytes, free_memory, refuse_for_hf, weight_bytes
from eval.engine.settings import EngineSettings, longest_sequence, positions_of
from eval.engine.vllm_model import VllmModel, tensor_parallel, vllm_problem
from impart.errors import InputError
from impart.overlay import Overlay, difference
from impart.pretrained import load_pretrained
from impart.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


class Engine:
    """A model that completes prompts greedily; a context manager. The weights are loaded when the first prompts come.

    `model` is a checkpoint's folder, or a delta over its base, which is decoded into the engine and can be swapped.
    InputError for a model whose config or tokenizer cannot be loaded.
    """

    def __init__(self, model: str | Path | Overlay, settings: EngineSettings):
        self.settings, self.model = settings, model if isinstance(model, Overlay) else Path(model)
        self.backend = chosen_backend(settings.backend)
        folder = model.folder if isinstance(model, Overlay) else model
        self.config, self.tokenizer = _config_of(folder), load_tokenizer(folder)
        self.max_model_len = longest_sequence(self.config, settings.max_model_len)
        self._loaded: Backend | None = None

    def generate(self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str] = ()) -> list[Completion]:
        """The completions in the order of the prompts."""
        done = dict(self.stream(prompts, max_tokens=max_tokens, stop=stop))
        return [done[position] for position in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        stop: Sequence[str] = (),
        names: Sequence[str] | None = None,
        special_tokens: bool = True,
    ) -> Iterator[tuple[int, Completion]]:
        """(position, completion) as they finish, so that an interrupted run keeps what it has.

        names: of the prompts, in messages. special_tokens: whether the tokenizer adds its own, as begin-of-sequence.
        InputError for a prompt that leaves no room for an answer.
        """
        ids = [self.tokenizer(prompt, add_special_tokens=special_tokens)["input_ids"] for prompt in prompts]
        for position, row in enumerate(ids):
            if len(row) >= self.max_model_len:
                name = names[position] if names else position
                raise InputError(
                    f"the prompt of item {name} has {len(row)} tokens, but prompt and answer together may "
                    f"have {self.max_model_len}; raise --max_model_len (the model has "
                    f"{positions_of(self.config)} positions), or leave the item out with --subset"
                )
        if self._loaded is None:  # only now: loading takes minutes, and the prompts could have been refused
            self._loaded = self._load()
        return self._loaded.stream(ids, max_tokens=max_tokens, stop=tuple(stop))

    def can_swap(self, model: Path | Overlay) -> bool:
        """Whether `swap` takes this model: a delta after a delta, over one base, of one config and tokenizer."""
        both = isinstance(self.model, Overlay) and isinstance(model, Overlay)
        return both and difference(self.model, model) is None  # type: ignore[arg-type]  # mypy does not follow `both`

    def swap(self, overlay: Overlay) -> None:
        """Answers with another delta over the same base from now on. InputError where `can_swap` says no."""
        if not self.can_swap(overlay):
            raise InputError(f"{str(overlay.delta.path)!r} does not fit the engine that is running; start another one")
        self.model = overlay
        if self._loaded is not None:
            self._loaded.swap(overlay)

    def _load(self) -> Backend:
        import torch  # seconds of import, not needed by --rescore

        dtype, longest = self.settings.dtype, self.max_model_len
        if self.backend == "vllm":
            ranks = tensor_parallel(self.config, self.settings.tensor_parallel, torch.cuda.device_count())
            return VllmModel(self.model, self.config, longest, ranks, self.settings)
        from eval.engine.hf import HfModel  # imports the model classes of transformers

        weights = weight_bytes(self.model, dtype)
        if isinstance(self.model, Overlay):
            weights += self.model.weight_bytes("auto")  # decoded first, then handed to transformers
        refuse_for_hf(weights, cache_bytes(self.config, longest, dtype), free_memory(), longest)
        return HfModel(
            self.model, self.tokenizer, dtype=dtype, max_model_len=longest, batch_size=self.settings.batch_size
        )

    def close(self) -> None:
        """Frees the model's memory; the engine cannot be used afterwards."""
        if self._loaded is not None:
            self._loaded.close()
        self._loaded = None
        gc.collect()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def chosen_backend(wanted: str) -> str:
    """vllm or hf; the log says what `auto` chose and why. InputError where vLLM is asked for and cannot run."""
    if wanted == "hf":
        return wanted
    missing = vllm_problem()
    if wanted == "vllm":
        if missing:
            raise InputError(f"--backend vllm: {missing}; take --backend hf, or install vllm for this machine")
        return wanted
    log.info("backend: %s", f"hf ({missing})" if missing else "vllm")
    return "hf" if missing else "vllm"


def chosen_dtype(backend: str, own: str) -> str:
    """What DTYPE `auto` stands for: the checkpoint's own, but fp32 where a CPU would only emulate 16 bit, slowly."""
    import torch

    return own if backend == "vllm" or torch.cuda.is_available() else "fp32"


def _config_of(folder: str | Path) -> Any:
    from transformers import AutoConfig  # seconds of import, not needed by --rescore

    return load_pretrained(AutoConfig, folder, what="config")
