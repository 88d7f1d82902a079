"""Fine-tunes a causal language model on instructions and answers: the recipe of LlamaCoder-13B.

Reads a base model and data sets with `problem` and `solution`, `instruction` and `response` or `prompt` and
`completion` (hub ids or local .jsonl files); writes the fine-tuned checkpoint to save_dir.

    python configs/llamacoder_13b/train.py --config configs/llamacoder_13b/train.yaml
    accelerate launch --config_file configs/llamacoder_13b/fsdp.yaml configs/llamacoder_13b/train.py \\
      --config configs/llamacoder_13b/train.yaml
    python configs/llamacoder_13b/train.py base_model=assets/tiny/base data='[answers.jsonl]' save_dir=runs/tuned \\
        length=128

Loss on the answer alone; AdamW, linear warm-up, cosine to zero. The seed decides the order of the items.
"""

import json
import logging
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as `python configs/llamacoder_13b/train.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Module

from impart.checkpoint import open_checkpoint
from impart.config import config_parser, load, option
from impart.errors import InputError, run
from impart.files import replace_folder
from impart.hub import is_hub_id, load_rows
from impart.outputs import refuse_existing
from impart.pretrained import load_model
from impart.records import read_records
from impart.report import start_logging
from impart.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

FIELDS = (("problem", "solution"), ("instruction", "response"), ("prompt", "completion"))
TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n\n"
    "### Instruction:\nCreate a Python script for this problem:\n{instruction}\n\n### Response:"
)  # HumanEval's
IGNORED = -100  # what the loss leaves out


@dataclass(frozen=True)
class Config:
    """One fine-tuning run."""

    base_model: str = option(help="folder or hub id")
    data: list[str] = option(help="hub ids or .jsonl files")
    save_dir: str = option(help="folder of the fine-tuned checkpoint")
    epochs: int = option(3, help="passes over the data", low=1)
    batch: int = option(8, help="items per step, over all processes", low=1)
    learning_rate: float = option(2e-5, help="at its peak", low=0.0)
    length: int = option(4096, help="longest instruction and answer; what is longer is cut", unit="tokens", low=2)
    warmup: float = option(0.03, help="share of the steps with a rising rate", low=0.0, high=1.0)
    template: str = option(TEMPLATE, help="how an instruction is put; {instruction} stands for it")
    seed: int = option(0, help="decides the order of the items", low=0)


def main(arguments: Sequence[str]) -> None:
    flags = config_parser(Config, __doc__).parse_intermixed_args(arguments)
    config = load(Config, flags.config, flags.overrides)
    start_logging()
    refuse_existing(Path(config.save_dir), flags.overwrite)
    pairs = [pair for source in config.data for pair in read_pairs(source)]
    base = open_checkpoint(config.base_model)
    accelerator = Accelerator(cpu=flags.device == "cpu")
    if config.batch % accelerator.num_processes:
        raise InputError(f"batch={config.batch} does not divide over {accelerator.num_processes} processes")
    torch.manual_seed(config.seed)
    tokenizer = load_tokenizer(base.path, base.source)
    model = load_model(base.path, base.source, dtype=torch.float32)
    items = [item for pair in pairs if (item := tokenized(*pair, tokenizer, config)) is not None]
    model, losses = train(model, items, config, accelerator)
    save(model, losses, config, tokenizer, accelerator)


def read_pairs(source: str) -> list[tuple[str, str]]:
    """(instruction, answer) of every item of a .jsonl file or of a hub data set."""
    remedy = "name a .jsonl file with problem and solution"
    if Path(source).is_file():
        records: Sequence[Mapping] = [record for _, record in read_records(Path(source))]
    elif is_hub_id(source):
        records = load_rows(source, split="train", what=f"data {source!r}", remedy=remedy)
    else:
        raise InputError(f"data {source!r} is neither a file nor a hub id of the form owner/name; {remedy}")
    fields = next((fields for fields in FIELDS if records and all(name in records[0] for name in fields)), None)
    if fields is None:
        raise InputError(f"data {source!r} has none of the field pairs {', '.join(map(' and '.join, FIELDS))}")
    return [(record[fields[0]], record[fields[1]]) for record in records]


def tokenized(instruction: str, answer: str, tokenizer, config: Config) -> tuple[list[int], list[int]] | None:
    """(ids, labels) of one item; None when the instruction alone fills the length."""
    prompt = tokenizer(config.template.replace("{instruction}", instruction))["input_ids"]
    reply = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids = (prompt + reply)[: config.length]
    return None if len(prompt) >= len(ids) else (ids, [IGNORED] * len(prompt) + ids[len(prompt) :])


def train(
    model: Module, items: Sequence[tuple[list[int], list[int]]], config: Config, accelerator: Accelerator
) -> tuple[Module, list[float]]:
    """The trained model, as the accelerator wrapped it, and the loss of every step."""
    steps = config.epochs * (len(items) // config.batch)
    if not steps:
        raise InputError(
            f"{len(items)} items are fewer than one batch={config.batch}; give more data or a smaller batch"
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    model, optimizer = accelerator.prepare(model, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor(steps, config.warmup))
    model.train()
    losses = []
    share = config.batch // accelerator.num_processes
    for step, batch in enumerate(batches(items, config), start=1):
        own = batch[accelerator.process_index * share : (accelerator.process_index + 1) * share]
        ids, labels, mask = (part.to(accelerator.device) for part in padded(own))
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.reduce(loss.detach(), reduction="mean")))
        if step % 10 == 0 or step == steps:
            log.info("step %d of %d, loss %.4f", step, steps, losses[-1])
    return model, losses


def rate_factor(steps: int, warmup: float) -> Callable[[int], float]:
    """Share of the peak rate at each step: linear up, then cosine to zero."""
    rising = max(1, round(warmup * steps))
    return lambda step: (
        (step + 1) / rising
        if step < rising
        else 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
    )


def batches(items: Sequence, config: Config) -> Iterator[list]:
    """Whole batches of every epoch, in an order drawn by the seed."""
    draw = random.Random(config.seed)
    for _ in range(config.epochs):
        order = list(range(len(items)))
        draw.shuffle(order)
        for first in range(0, len(items) - config.batch + 1, config.batch):
            yield [items[index] for index in order[first : first + config.batch]]


def padded(batch: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """ids, labels and mask (b, longest), padded on the right; the id of the padding is never read."""
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in batch])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in batch])
    return ids, labels, mask


def save(model: Module, losses: Sequence[float], config: Config, tokenizer, accelerator: Accelerator) -> None:
    """The checkpoint in bf16, with tokenizer, settings and losses; the first process writes, whole or not at all."""
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        out = Path(config.save_dir)
        partial = out.with_name(f"{out.name}.partial")
        plain = accelerator.unwrap_model(model)
        plain.config.dtype = torch.bfloat16
        plain.save_pretrained(partial, state_dict={name: tensor.to(torch.bfloat16) for name, tensor in state.items()})
        tokenizer.save_pretrained(partial)
        (partial / "training.json").write_text(
            json.dumps({"settings": vars(config), "losses": losses}, indent=2) + "\n"
        )
        replace_folder(partial, out)
        print(f"{out}: {len(losses)} steps, loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    run(main)
