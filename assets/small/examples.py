"""What the small pair's models learn: (prompt, completion) of the tiny pair's tasks, or of GSM8K's training set."""

import random
from collections.abc import Iterator

from assets.tiny.tasks import SKILLS, draw
from eval.run.gsm8k_items import TEMPLATE, solutions
from eval.run.prompts import render

Pair = tuple[str, str]  # prompt, completion


def examples(skill: str, seed: int) -> Iterator[Pair]:
    """Endless training examples, a pure function of their arguments (and of GSM8K's file)."""
    if skill in SKILLS:
        yield from ((item.prompt, item.completion) for item in draw(skill, "train", seed))
    items, rng = solutions("train").items, random.Random(f"{seed} gsm8k order")
    pairs = [(render(TEMPLATE, item["prompt"]), item["completion"]) for item in items]
    while True:
        rng.shuffle(pairs)
        yield from pairs
