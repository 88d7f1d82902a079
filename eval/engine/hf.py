"""The transformers backend of eval/engine/engine.py: batched greedy decoding that stops and cuts as vLLM does."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from eval.engine.completion import Completion
from impart.dtypes import long_name
from impart.errors import InputError
from impart.overlay import Overlay
from impart.pretrained import load_model, load_pretrained, refuse_missing

CONTEXT = 6  # prompt tokens decoded together with an answer, so that its first space is kept


class HfModel:
    """A causal language model and its tokenizer, on the GPUs where there are any."""

    def __init__(self, model: Path | Overlay, tokenizer, *, dtype: str, max_model_len: int, batch_size: int):
        transformers_logging.disable_progress_bar()  # one bar per model would bury the results
        self.dtype, self.tokenizer, self.max_model_len, self.batch_size = dtype, tokenizer, max_model_len, batch_size
        self._load(model)

    def _load(self, model: Path | Overlay) -> None:
        several = torch.cuda.device_count() > 1
        loading: dict[str, Any] = {"dtype": long_name(self.dtype)} | ({"device_map": "auto"} if several else {})
        loaded = _decoded(model, **loading) if isinstance(model, Overlay) else load_model(model, **loading)
        self.model = loaded.eval()
        if torch.cuda.device_count() == 1:
            self.model.to("cuda")
        self.ends = _end_tokens(self.model.generation_config, self.tokenizer)
        # Plain greedy decoding: `generate` would mix in the repetition penalties and the like that models ship with.
        self.model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=self.ends or None, pad_token_id=self.ends[0] if self.ends else 0
        )

    def stream(
        self, prompts: Sequence[Sequence[int]], *, max_tokens: int, stop: tuple[str, ...]
    ) -> Iterator[tuple[int, Completion]]:
        """(position, completion) batch by batch, the longest prompts first: if memory is short, it shows at once."""
        order = sorted(range(len(prompts)), key=lambda position: -len(prompts[position]))
        for first in range(0, len(order), self.batch_size):
            positions = order[first : first + self.batch_size]
            try:
                completions = self._batch([prompts[position] for position in positions], max_tokens, stop)
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"the GPU's memory is too small for {len(positions)} prompts at a time ({error}); "
                    "lower --batch_size or --max_model_len"
                ) from error
            yield from zip(positions, completions, strict=True)

    @torch.inference_mode()
    def _batch(self, prompts: list[Sequence[int]], max_tokens: int, stop: tuple[str, ...]) -> list[Completion]:
        longest = max(map(len, prompts))
        pad = self.model.generation_config.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])  # (batch, longest)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        budgets = [min(max_tokens, self.max_model_len - len(prompt)) for prompt in prompts]
        ending = RowEnds(prompts, longest, budgets, self.ends, stop, self.tokenizer)
        self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            max_new_tokens=max(budgets),
            stopping_criteria=StoppingCriteriaList([ending]),
        )
        return [completion for completion in ending.completions if completion]  # all have ended

    def swap(self, overlay: Overlay) -> None:
        """Loads another delta over the base, once the old weights are gone."""
        self.close()
        self._load(overlay)

    def close(self) -> None:
        """Frees the weights."""
        self.model = None


class RowEnds(StoppingCriteria):
    """Ends each row of a batch at its own end token, stop string or token budget, and keeps its completion."""

    def __init__(
        self,
        prompts: list[Sequence[int]],
        longest: int,
        budgets: list[int],
        ends: list[int],
        stop: tuple[str, ...],
        tokenizer,
    ):
        self.prompts, self.longest, self.budgets, self.ends = prompts, longest, budgets, set(ends)
        self.stop, self.tokenizer = stop, tokenizer
        self.window = max(map(len, stop), default=0) + 4  # the last tokens that can hold a stop string just completed
        self.completions: list[Completion | None] = [None] * len(prompts)

    def __call__(self, input_ids: torch.Tensor, scores, **_) -> torch.Tensor:
        rows = input_ids[:, self.longest :].tolist()
        open_rows = [row for row, completion in enumerate(self.completions) if completion is None]
        tails = (
            self.tokenizer.batch_decode(
                [rows[row][-self.window :] for row in open_rows],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
            if self.stop
            else [""] * len(open_rows)
        )
        for row, tail in zip(open_rows, tails, strict=True):
            self.completions[row] = self._ended(row, rows[row], tail)
        done = [completion is not None for completion in self.completions]
        return torch.tensor(done, device=input_ids.device)

    def _ended(self, row: int, answer: list[int], tail: str) -> Completion | None:
        if answer[-1] in self.ends:
            return Completion(self._text(row, answer[:-1]), len(answer), "stop")
        if any(string in tail for string in self.stop):
            text = self._text(row, answer)
            for string in self.stop:  # in the order given, as vLLM looks for them
                if string in text:
                    return Completion(text[: text.index(string)], len(answer), "stop")
        if len(answer) >= self.budgets[row]:
            return Completion(self._text(row, answer), len(answer), "length")
        return None

    def _text(self, row: int, answer: list[int]) -> str:
        before = list(self.prompts[row][-CONTEXT:])
        whole, prefix = (
            self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids in (before + answer, before)
        )
        # Bytes that are no whole character yet are never shown, as in vLLM.
        return whole[len(prefix) :].rstrip("\ufffd")


def _decoded(overlay: Overlay, **options: Any) -> Any:
    """Base + delta as a model, of which nothing is written."""
    config = load_pretrained(AutoConfig, overlay.folder, what="config")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{str(overlay.delta.path)!r} is of a model whose class transformers does not have; rebuild it with "
            "delta.py --merge and name that folder"
        )
    weights = dict(overlay.tensors("cuda" if torch.cuda.is_available() else "cpu"))
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model, found = kind.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True, **options)
    refuse_missing(found["missing_keys"], str(overlay.delta.path), model)
    if (overlay.folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(overlay.folder)
    return model


def _end_tokens(generation_config, tokenizer) -> list[int]:
    """The end-of-sequence tokens that vLLM would stop at: the generation config's and the tokenizer's."""
    listed = generation_config.eos_token_id
    ends = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends = [*ends, tokenizer.eos_token_id]
    return ends
