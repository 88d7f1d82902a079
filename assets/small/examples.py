"""What the small pair's models learn: (prompt, completion) of the tiny pair's tasks, or of GSM8K's training set.

    python assets/small/examples.py --out assets/small/models/gsm8k_validation.jsonl

writes GSM8K's training items that no training sees, as eval/loss.py --data reads them.
"""

import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run as `python assets/small/examples.py`: import from the repository root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from assets.tiny.tasks import SKILLS as TINY_SKILLS
from assets.tiny.tasks import draw
from eval.run.data import Source, load_items
from eval.run.prompts import render
from impart.config import Parser
from impart.errors import run

GSM8K = Source("gsm8k", "gsm8k_train.jsonl", {"question": str, "answer": str}, hub=("openai/gsm8k", "main", "train"))
VALIDATION_ITEMS = 200  # the last ones of GSM8K's training set
SKILLS = (*TINY_SKILLS, "gsm8k")

Pair = tuple[str, str]  # prompt, completion


def examples(skill: str, seed: int) -> Iterator[Pair]:
    """Endless training examples, a pure function of their arguments (and of GSM8K's file)."""
    if skill in TINY_SKILLS:
        yield from ((item.prompt, item.completion) for item in draw(skill, "train", seed))
    pairs, rng = gsm8k()[:-VALIDATION_ITEMS], random.Random(f"{seed} gsm8k order")
    while True:
        rng.shuffle(pairs)
        yield from pairs


def gsm8k() -> list[Pair]:
    """All of GSM8K's training set: the benchmark's own prompt, and an answer that ends as it is scored."""
    return [(render("wizardmath", item["question"]), solution(item["answer"])) for item in load_items(GSM8K).items]


def solution(answer: str) -> str:
    """GSM8K's answer without the calculator's notes, `#### 72` written out."""
    text = re.sub(r"<<.*?>>", "", answer)
    return " " + re.sub(r"#### *(.+)", r"The answer is: \1", text)


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="jsonl of prompt and completion")
    out = parser.parse_args(arguments).out
    out.parent.mkdir(parents=True, exist_ok=True)
    held_out = [{"prompt": prompt, "completion": completion} for prompt, completion in gsm8k()[-VALIDATION_ITEMS:]]
    out.write_text("".join(json.dumps(record) + "\n" for record in held_out))


if __name__ == "__main__":
    run(main)
