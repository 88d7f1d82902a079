"""GSM8K's items: the test set that is scored, and the solutions that models learn and whose loss is measured."""

import re
from dataclasses import replace
from pathlib import Path

from eval.run.data import Items, Source, load_items
from impart.errors import InputError

FIELDS: dict[str, type] = {"question": str, "answer": str}
TEST = Source("gsm8k", "gsm8k_test.jsonl", FIELDS, hub=("openai/gsm8k", "main", "test"))
TRAINING = Source("gsm8k", "gsm8k_train.jsonl", FIELDS, hub=("openai/gsm8k", "main", "train"))
TEMPLATE = "wizardmath"  # the paper's prompt
HELD_OUT = 200  # the training set's last items: the small pair's model does not learn them, settings are chosen on them


def solution(answer: str) -> str:
    """The completion that an answer of the data set stands for: no calculator's notes, `#### 72` as it is scored."""
    text = re.sub(r"<<.*?>>", "", answer)
    return " " + re.sub(r"#### *(.+)", r"The answer is: \1", text)


def solutions(split: str, data: Path | None = None, limit: int | None = None, subset: str | None = None) -> Items:
    """Items with `prompt` (the bare question) and `completion`; see `load_items`.

    split: "test", "validation" (the training set's last `HELD_OUT`), or "train" (its others). A file in `data` and a
    `subset` are taken as they are. InputError for a training set that has no more than those.
    """
    source = TEST if split == "test" else TRAINING
    if source is TRAINING and subset is None and not (data and data.is_file()):
        whole = load_items(source, data)
        first = whole.total - HELD_OUT
        if first <= 0:
            raise InputError(f"{whole.origin} has {whole.total} items, of which the last {HELD_OUT} are held out")
        subset = f"{first}-{whole.total - 1}" if split == "validation" else f"0-{first - 1}"
    chosen = load_items(source, data, limit, subset)
    return replace(
        chosen,
        items=[
            {"id": item["id"], "prompt": item["question"], "completion": solution(item["answer"])}
            for item in chosen.items
        ],
    )
