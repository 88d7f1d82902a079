"""How likely a model finds gold completions: the mean negative log-likelihood of their tokens, in nats."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

IGNORED = -100  # target of what is not predicted

Example = tuple[list[int], list[int]]  # token ids of a prompt and of its completion


def example(tokenizer: Any, prompt: str, completion: str) -> Example:
    """The prompt as an engine reads it, and the completion with the end of sequence that it has to predict as well."""
    answer = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return list(tokenizer(prompt)["input_ids"]), [*answer, tokenizer.eos_token_id]


def padded(examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, targets), each (batch, longest), padded on the right, where a causal model needs no mask."""
    longest = max(len(prompt) + len(answer) for prompt, answer in examples)
    ids = torch.zeros((len(examples), longest), dtype=torch.long)
    targets = torch.full((len(examples), longest), IGNORED)
    for row, (prompt, answer) in enumerate(examples):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        targets[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, targets


@torch.inference_mode()
def completion_losses(model: Any, examples: Sequence[Example], batch_size: int) -> list[float]:
    """Mean over the tokens of each completion, in the order of the examples; neighbours in length share a batch."""
    order = sorted(range(len(examples)), key=lambda position: -sum(map(len, examples[position])))
    losses = [0.0] * len(examples)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        ids, targets = (tensor.to(model.device) for tensor in padded([examples[position] for position in chosen]))
        logits, following = model(input_ids=ids, use_cache=False).logits[:, :-1], targets[:, 1:]
        wanted = following != IGNORED
        by_token = cross_entropy(logits[wanted].float(), following[wanted], reduction="none")  # (tokens,)
        for position, own in zip(chosen, by_token.split(wanted.sum(1).tolist()), strict=True):
            losses[position] = own.double().mean().item()
    return losses
