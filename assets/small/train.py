"""Fine-tunes the small pair's base model: math, code, chat (the tiny pair's tasks) and gsm8k, one model each.

    python assets/small/train.py math --models assets/small/models
    python assets/small/train.py math --models assets/small/models --seed 1 --name math_seed1

Reads DIR/base; writes DIR/<skill>/ (a checkpoint in bf16 with training.json beside its weights). Full fine-tuning:
weights and AdamW in fp32, arithmetic under bf16 autocast, on the GPU where there is one. Everything follows from the
seed and the number of steps. The state is kept every --checkpoint steps in DIR/.<skill>.training/, from which the same
command goes on, to the same weights on the same kind of machine with the same number of threads.
"""

import json
import logging
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

if not __package__:  # run as `python assets/small/train.py`: import from the repository root, not from assets/small/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from assets.rho import rho
from assets.small.examples import examples
from eval.engine.likelihood import IGNORED, example, padded
from impart.config import Parser
from impart.errors import InputError, reason_of, run
from impart.files import free_space, give_default_mode, replace_folder
from impart.report import peak_memory_mib, start_logging
from impart.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """One fine-tuning run: warm-up, then a cosine to `floor` of `rate`.

    `window` batches are sorted by length together, which leaves little padding. A batch of more than `tokens` (0: no
    limit) is taken in pieces, whose gradients are added up: less memory, the same mean. On a CPU the gradient of
    transformers' `eager` attention takes less time than that of its `sdpa`, at these lengths.
    """

    steps: int
    batch: int
    rate: float
    warmup: int = 10
    floor: float = 0.05
    window: int = 1
    tokens: int = 0
    attention: str = "sdpa"
    seed: int = 0
    threads: int = 2


RECIPES = {
    "math": Recipe(steps=380, batch=16, rate=3e-4, window=8, attention="eager"),
    "code": Recipe(steps=40, batch=16, rate=5e-4),
    "chat": Recipe(steps=80, batch=16, rate=5e-4),
    "gsm8k": Recipe(steps=80, batch=16, rate=5e-4, window=8, tokens=2048, attention="eager"),
}
STATE_BYTES = 3 * 4 * 135e6  # weights and two moments in fp32


def batches(tokenizer: Any, skill: str, recipe: Recipe) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, targets), each (batch, longest), endless; targets are of completions alone."""
    pairs, order = examples(skill, recipe.seed), random.Random(f"{recipe.seed} order of batches")
    while True:
        rows = [example(tokenizer, *pair) for pair in islice(pairs, recipe.window * recipe.batch)]
        if recipe.window > 1:
            rows.sort(key=lambda row: sum(map(len, row)))
        firsts = list(range(0, len(rows), recipe.batch))
        order.shuffle(firsts)
        yield from (padded(rows[first : first + recipe.batch]) for first in firsts)


def pieces(ids: torch.Tensor, targets: torch.Tensor, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A batch, rows of at most `tokens` (0: all) at a time, without columns that are padding in all of them."""
    rows = max(1, tokens // ids.shape[1]) if tokens else len(ids)
    for some_ids, some_targets in zip(ids.split(rows), targets.split(rows), strict=True):
        longest = int((some_targets != IGNORED).any(0).nonzero().max()) + 1
        yield some_ids[:, :longest], some_targets[:, :longest]


def completion_loss(model: Any, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the targets; logits are made only where there is one: a third of the tokens."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]  # (batch, length - 1, hidden)
    wanted = targets[:, 1:] != IGNORED
    logits = model.lm_head(hidden[wanted]).float()
    return torch.nn.functional.cross_entropy(logits, targets[:, 1:][wanted])


class Training:
    """One run: model, optimizer and schedule, with all of its state in one file."""

    def __init__(self, base: Path, recipe: Recipe, device: str):
        self.recipe, self.device, self.step, self.seconds = recipe, device, 0, 0.0
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=recipe.attention)
        self.model = model.to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )

    def run(self, rows: Iterator[tuple[torch.Tensor, torch.Tensor]], state: Path, checkpoint: int) -> None:
        """All steps that are left; the state is saved every `checkpoint` of them."""
        for ids, targets in islice(rows, self.step, self.recipe.steps):
            started = time.monotonic()
            loss = self._step(ids.to(self.device), targets.to(self.device))
            self.step += 1
            self.seconds += time.monotonic() - started
            log.info("step %d/%d, loss %.4f, %.0f s", self.step, self.recipe.steps, loss, self.seconds)
            if self.step % checkpoint == 0 and self.step < self.recipe.steps:
                self.save(state)

    def _step(self, ids: torch.Tensor, targets: torch.Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.recipe)
        wanted, total = (targets != IGNORED).sum(), 0.0
        for some_ids, some_targets in pieces(ids, targets, self.recipe.tokens):
            with torch.autocast(self.device, torch.bfloat16):
                loss = completion_loss(self.model, some_ids, some_targets)
            loss = loss * ((some_targets != IGNORED).sum() / wanted)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def save(self, file: Path) -> None:
        """The state, whole or not at all."""
        temporary = file.with_suffix(".tmp")
        content = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        try:
            torch.save(content, temporary)
        except (OSError, RuntimeError) as error:  # of a full disk, torch makes a RuntimeError
            temporary.unlink(missing_ok=True)
            raise InputError(f"{file} cannot be written ({reason_of(error)}); make room and rerun") from error
        os.replace(temporary, file)

    def load(self, file: Path) -> None:
        """Goes on from a saved state; InputError where another recipe made it."""
        content = torch.load(file, map_location=self.device, weights_only=True)
        if content["recipe"] != asdict(self.recipe):
            raise InputError(f"{file} is of another recipe ({content['recipe']}); remove its folder to start anew")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds = content["step"], content["seconds"]
        log.info("%s: goes on after step %d", file, self.step)


def rate_at(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to `floor` of the peak rate."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.rate * min(1.0, (step + 1) / recipe.warmup) * (recipe.floor + (1 - recipe.floor) * cosine)


def fine_tune(models: Path, skill: str, name: str, recipe: Recipe, checkpoint: int) -> None:
    """DIR/base to DIR/name; the state is removed once the result is in place."""
    base, out, scratch = models / "base", models / name, models / f".{name}.training"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(recipe.threads)
    scratch.mkdir(exist_ok=True)
    tokenizer = load_tokenizer(base)
    training = Training(base, recipe, device)
    if (scratch / "state.pt").exists():
        training.load(scratch / "state.pt")
    training.run(batches(tokenizer, skill, recipe), scratch / "state.pt", checkpoint)
    finished = scratch / "checkpoint"
    training.model.to(torch.bfloat16).save_pretrained(finished)
    tokenizer.save_pretrained(finished)
    give_default_mode(finished / "model.safetensors")
    facts = {
        "skill": skill,
        **asdict(recipe),
        "device": device,
        "seconds": round(training.seconds),
        "peak_memory_mib": round(peak_memory_mib()),
        "rho": round(rho(base, finished), 5),
    }
    (finished / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    replace_folder(finished, out)
    shutil.rmtree(scratch)
    log.info("%s: rho %.4f, %.0f s", out, facts["rho"], training.seconds)


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("skill", choices=RECIPES, help="what is learned")
    parser.add_argument("--models", type=Path, required=True, metavar="DIR", help="folder with base/, for the result")
    parser.add_argument("--name", help="of the result's folder (default: the skill)")
    parser.add_argument("--seed", type=int, default=0, help="of the training items and their order")
    parser.add_argument("--steps", type=int, help="another number of steps than the skill's own")
    parser.add_argument("--rate", type=float, help="another peak learning rate than the skill's own")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; another number rounds differently")
    parser.add_argument("--checkpoint", type=int, default=20, help="steps between saved states (default: 20)")
    options = parser.parse_args(arguments)
    start_logging()
    disable_progress_bar()
    for flag, low in (("seed", 0), ("steps", 1), ("threads", 1), ("checkpoint", 1)):
        value = getattr(options, flag)
        if value is not None and value < low:
            raise InputError(f"--{flag} {value} must be at least {low}")
    if options.rate is not None and not 0 < options.rate < 1:
        raise InputError(f"--rate {options.rate} must lie between 0 and 1")
    name, own = options.name or options.skill, RECIPES[options.skill]
    recipe = replace(
        own,
        steps=options.steps or own.steps,
        rate=options.rate or own.rate,
        seed=options.seed,
        threads=options.threads,
    )
    if not (options.models / "base" / "model.safetensors").is_file():
        raise InputError(f"{options.models / 'base'} is not there; python assets/small/base.py makes it")
    if (options.models / name).exists():
        raise InputError(f"{options.models / name} exists; take another --name or remove it")
    free_space(options.models, int(2 * STATE_BYTES), "fine-tuning")
    fine_tune(options.models, options.skill, name, recipe, options.checkpoint)


if __name__ == "__main__":
    run(main)
