"""Trains the tiny model pair: a tokenizer, one base model, and a fine-tuned model for each of math, code and chat.

    python assets/tiny/train.py --out DIR                            everything: data, base and three fine-tuned models
    python assets/tiny/train.py --out DIR --skill code --overwrite   one skill again, from the base that is in DIR
    python assets/tiny/train.py --out DIR --data-only                the held-out task files alone

Reads nothing; writes DIR/{base,math,code,chat}/ (Hugging Face checkpoints, bf16) and DIR/data/*.jsonl, then prints
accuracies and rho = mean of norm(dW) / norm(W) over the linear weights. Everything follows from --seed and the number
of steps; no wall clock decides anything.
"""

import json
import logging
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

if not __package__:  # run as `python assets/tiny/train.py`: import from the repository root, not from assets/tiny/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from assets.rho import rho
from assets.tiny.circuit import start_with_copy_heads
from assets.tiny.pretraining import documents
from assets.tiny.tasks import SKILLS, draw, held_out, jsonl
from eval.scoring.tiny import SCORERS
from impart.config import Parser
from impart.errors import InputError, run
from impart.records import read_records
from impart.tokenizer import load_tokenizer

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
MAX_NEW_TOKENS = 96
HELD_OUT_ITEMS = 200


@dataclass(frozen=True)
class Recipe:
    """One training run; `items` of 0 means a stream that never repeats."""

    steps: int
    batch: int
    rate: float
    warmup: int
    floor: float = 0.05  # the cosine ends at this share of `rate`
    decay: float = 0.0
    items: int = 0


BASE = Recipe(steps=1500, batch=8, rate=1.5e-3, warmup=40, floor=0.0, decay=0.05)
TUNING = {
    "math": Recipe(steps=1000, batch=32, rate=6e-4, warmup=20, items=10000),
    "code": Recipe(steps=400, batch=32, rate=5e-4, warmup=20, items=5000),
    "chat": Recipe(steps=1000, batch=32, rate=5e-4, warmup=20, items=8000),
}
BASE_LENGTH = 128  # tokens of one pretraining row
VOCABULARY = 800
POSITIONS = 512

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]  # (ids, targets), each (batch, length)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which digits and line breaks stand alone; the post-processor puts BOS before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(islice(documents(seed), 20000), trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    start_with_copy_heads(model, seed)
    # An untrained pad row would stay at its random start in every model; zero says that it means nothing.
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.pad_token_id].zero_()
    return model


def pretraining_rows(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> Batches:
    """(ids, targets), each (batch, BASE_LENGTH): documents one after another, BOS before and EOS after each."""
    stream: list[int] = []
    texts = documents(seed)
    size = recipe.batch * BASE_LENGTH
    while True:
        while len(stream) < size:
            stream += [*tokenizer(next(texts)).input_ids, tokenizer.eos_token_id]
        ids = torch.tensor(stream[:size]).view(recipe.batch, BASE_LENGTH)
        del stream[:size]
        yield ids, ids


def tuning_rows(tokenizer: PreTrainedTokenizerFast, skill: str, recipe: Recipe, seed: int) -> Batches:
    """(ids, targets), each (batch, longest): prompt, completion, EOS; the targets of prompt and padding are -100."""
    pairs = []
    for item in islice(draw(skill, "train", seed), recipe.items):
        prompt = tokenizer(item.prompt).input_ids
        answer = [*tokenizer(item.completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        pairs.append((prompt, answer))
    rng = random.Random(f"{seed} {skill} order")
    while True:
        rng.shuffle(pairs)
        for start in range(0, len(pairs) - recipe.batch + 1, recipe.batch):
            rows = pairs[start : start + recipe.batch]
            longest = max(len(prompt) + len(answer) for prompt, answer in rows)
            ids = torch.full((recipe.batch, longest), tokenizer.pad_token_id)
            targets = torch.full((recipe.batch, longest), -100)
            for row, (prompt, answer) in enumerate(rows):
                ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
                targets[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
            yield ids, targets


def optimize(model: LlamaForCausalLM, rows: Batches, recipe: Recipe, what: str) -> None:
    """AdamW with warm-up, cosine and clipping at 1; padding is on the right, so that a causal model needs no mask."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay)

    def share(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        return min(1.0, (step + 1) / recipe.warmup) * (recipe.floor + (1 - recipe.floor) * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    model.train()
    start = time.perf_counter()
    recent = 0.0
    for step, (ids, targets) in enumerate(islice(rows, recipe.steps), 1):
        loss = model(input_ids=ids, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        recent += loss.item()
        if step % 100 == 0:
            seconds = time.perf_counter() - start
            logging.info("%s: step %d/%d, loss %.3f, %.0f s", what, step, recipe.steps, recent / 100, seconds)
            recent = 0.0


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A plain checkpoint: weights in bf16, and files that older transformers read as well."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors creates it for its owner alone
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), load_tokenizer(folder)


@torch.inference_mode()
def complete(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    """Greedy completions up to EOS."""
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    model.eval()
    ids = model.generate(**batch, do_sample=False, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)


def accuracy(folder: Path, skill: str, data: Path) -> float:
    """Percent of the records of a data file that the shipped (bf16) weights answer."""
    records = [record for _, record in read_records(data)]
    completions = complete(*load(folder), [record["prompt"] for record in records])
    return 100 * sum(verdict.correct for verdict in SCORERS[skill](records, completions)) / len(records)


def write_data(folder: Path, overwrite: bool) -> None:
    """The held-out items; they do not depend on the training seed, so a second run finds its own bytes there."""
    folder.mkdir(parents=True, exist_ok=True)
    for skill in SKILLS:
        for split in ("validation", "test"):
            path, text = folder / f"{skill}_{split}.jsonl", jsonl(held_out(skill, split, HELD_OUT_ITEMS), split)
            if path.exists() and path.read_text() != text and not overwrite:
                raise InputError(f"{path} exists with other items; take another --out or add --overwrite")
            path.write_text(text)


def check_outputs(out: Path, skills: Sequence[str] | None, overwrite: bool) -> None:
    """Before any training: a single skill needs its base, and no checkpoint is overwritten unasked."""
    if skills and not (out / "base" / "model.safetensors").exists():
        raise InputError(f"--skill {skills[0]} needs {out / 'base'}, which is not there; run without --skill first")
    for folder in (out / name for name in skills or ("base", *SKILLS)):
        if folder.exists() and not overwrite:
            raise InputError(f"{folder} exists; take another --out or add --overwrite")


def fine_tune(out: Path, skill: str, recipe: Recipe, seed: int) -> None:
    """One skill from DIR/base to DIR/skill, with its accuracies."""
    base, tuned = out / "base", out / skill
    model, tokenizer = load(base)
    optimize(model, tuning_rows(tokenizer, skill, recipe, seed), recipe, skill)
    save(model, tokenizer, tuned)
    for split in ("validation", "test"):
        data = out / "data" / f"{skill}_{split}.jsonl"
        logging.info(
            "%s %s: base %.1f, fine-tuned %.1f, rho %.3f",
            skill,
            split,
            accuracy(base, skill, data),
            accuracy(tuned, skill, data),
            rho(base, tuned),
        )


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the checkpoints and data/")
    parser.add_argument("--skill", choices=SKILLS, action="append", help="fine-tune this skill only (may be repeated)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training text, the start and the order")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--data-only", action="store_true", help="write DIR/data and stop")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in DIR")
    parser.add_argument("--steps", type=int, help="fine-tuning steps other than the skill's own")
    parser.add_argument("--rate", type=float, help="fine-tuning peak learning rate other than the skill's own")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    disable_progress_bar()
    torch.set_num_threads(options.threads)
    if not options.data_only:
        check_outputs(options.out, options.skill, options.overwrite)
    write_data(options.out / "data", options.overwrite)
    if options.data_only:
        return
    if not options.skill:
        tokenizer = train_tokenizer(options.seed)
        model = new_model(tokenizer, options.seed)
        optimize(model, pretraining_rows(tokenizer, BASE, options.seed), BASE, "base")
        save(model, tokenizer, options.out / "base")
        logging.info("base: %d parameters", model.num_parameters())
    for skill in options.skill or SKILLS:
        recipe = TUNING[skill]
        recipe = replace(recipe, steps=options.steps or recipe.steps, rate=options.rate or recipe.rate)
        fine_tune(options.out, skill, recipe, options.seed)


if __name__ == "__main__":
    run(main)
