"""A pair of small models whose delta can be compressed in memory again and again, without a file: KnownPair."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from eval.engine.likelihood import IGNORED, Example, completion_losses, example, padded
from impart.architecture import linear_names
from impart.checkpoint import open_checkpoint
from impart.encodings.encoded import Encoded, Triplets
from impart.errors import InputError
from impart.method import DenseMatrix, FactoredMatrix, Method
from impart.pretrained import load_model
from impart.svd import delta_svd
from impart.tokenizer import load_tokenizer
from quantize.information import fisher_information

ROOT = Path(__file__).resolve().parents[1]
BATCH = 16
ANSWER_TOKENS = 48
WINDOW = 128  # tokens of a sequence of prompts


class Known:
    """The delta of one matrix with its SVD, computed once."""

    def __init__(self, name: str, W: Tensor, dW: Tensor):
        self.name, self.W, self._dense = name, W, DenseMatrix(name, dW)
        self._factored = FactoredMatrix(name, delta_svd(dW))

    @property
    def shape(self) -> tuple[int, int]:
        return self._dense.shape

    def dense(self) -> Tensor:
        return self._dense.dense()

    def triplets(self, rank: int) -> Triplets | None:
        return self._factored.triplets(rank)


@dataclass(frozen=True)
class Measured:
    """Of a compressed delta: held-out loss in nats per token, change of the last layer's output, stored bytes."""

    loss: float
    change: float
    size: float


class KnownPair:
    """Both models' linear weights, the fine-tuned model, gold completions of a task's validation items, and texts.

    `items` validation items have the loss; of the prompts of `texts` others, with the fine-tuned model's own greedy
    answers, come the change of the last layer's output and the information. No gold completion is among these.
    """

    def __init__(self, base: str, finetuned: str, task: str, items: int, texts: int):
        base_weights, tuned = open_checkpoint(base), open_checkpoint(finetuned)
        self._tuned = tuned
        self.matrices = linear_names(tuned)
        self._known = {name: self._read(base_weights.tensor(name), tuned.tensor(name), name) for name in self.matrices}
        dtype, tokenizer = tuned.model_dtype(), load_tokenizer(tuned.path, tuned.source)
        lines = (ROOT / "assets" / "tiny" / "data" / f"{task}_validation.jsonl").read_text().splitlines()
        if len(lines) < items + texts:
            raise InputError(f"{task} has {len(lines)} validation items, fewer than --items {items} and {texts} texts")
        rows = [json.loads(line) for line in lines]
        self._examples = [example(tokenizer, row["prompt"], row["completion"]) for row in rows[:items]]
        self._model = load_model(tuned.path, tuned.source, dtype=dtype).eval()
        self._texts = [self._answered(tokenizer, row["prompt"]) for row in rows[items : items + texts]]
        self._tuned_outputs, self.tuned_loss = self._outputs(), self.loss()
        tuned_model, self._model = self._model, load_model(base_weights.path, base_weights.source, dtype=dtype).eval()
        self._base_outputs, self.base_loss = self._outputs(), self.loss()
        self._model = tuned_model

    def matrix(self, name: str) -> Known:
        return self._known[name]

    @property
    def all(self) -> list[Known]:
        """Every matrix."""
        return list(self._known.values())

    def tensor(self, name: str) -> Tensor:
        """The base's weight."""
        return self._known[name].W

    @staticmethod
    def _read(W: Tensor, tuned: Tensor, name: str) -> Known:
        return Known(name, W.float(), tuned.float() - W.float())

    @torch.inference_mode()
    def _answered(self, tokenizer: Any, prompt: str) -> Example:
        """A prompt and the model's own greedy answer to it."""
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        end = tokenizer.eos_token_id
        found = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=end
        )
        return ids[0].tolist(), found[0, ids.shape[1] :].tolist()

    def loss(self) -> float:
        """Mean held-out loss of the model as it is."""
        return statistics.fmean(completion_losses(self._model, self._examples, BATCH))

    @torch.inference_mode()
    def _outputs(self) -> Tensor:
        """The last layer's output (tokens, hidden) wherever a token of an answer is predicted."""
        found = []
        for first in range(0, len(self._texts), BATCH):
            ids, targets = padded(self._texts[first : first + BATCH])
            hidden = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            found.append(hidden[targets[:, 1:] != IGNORED].float())
        return torch.cat(found)

    def change(self) -> float:
        """Mean squared change of the last layer's output from the fine-tuned model's, over that of the base."""
        distance = (self._outputs() - self._tuned_outputs).square().sum()
        return float(distance / (self._base_outputs - self._tuned_outputs).square().sum())

    @torch.no_grad()
    def compressed(self, method: Method, seed: int) -> Measured:
        """The model with every linear weight's delta compressed."""
        size = 0
        for name in self.matrices:
            encoded = method.encode(self.matrix(name), seed)
            size += stored_bytes(name, encoded)
            self._model.get_parameter(name).copy_(self.tensor(name) + encoded.dense(name))
        return Measured(self.loss(), self.change(), size)

    def measured(self, method: Method, seeds: int) -> Measured:
        """Means over mask seeds 0 to seeds - 1; of a method without masks, one."""
        found = [self.compressed(method, seed) for seed in range(seeds if method.seeded else 1)]
        loss, change, size = (
            statistics.fmean(getattr(each, key) for each in found) for key in ("loss", "change", "size")
        )
        return Measured(loss, change, size)

    @property
    def dense_bytes(self) -> int:
        """The linear weights in 16 bit."""
        return 2 * sum(known.W.numel() for known in self._known.values())

    def information(self, answers: bool) -> Mapping[str, float]:
        """Fisher information of each matrix, on windows of the texts' prompts or on prompts with their own answers."""
        if answers:
            sequences = [torch.tensor([*prompt, *answer]) for prompt, answer in self._texts]
        else:
            ids = [token for prompt, _ in self._texts for token in prompt]
            sequences = list(torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW))
        return fisher_information(self._tuned, self.matrices, sequences, seed=0, device=torch.device("cpu"))


def stored_bytes(name: str, encoded: Encoded) -> int:
    """What a matrix takes in a shard, its part of the header included."""
    return len(safetensors.torch.save({f"{name}.{suffix}": tensor for suffix, tensor in encoded.tensors.items()}))
