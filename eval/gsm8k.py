"""GSM8K: 1319 word problems with whole-number answers, one greedy answer each.

    python eval/gsm8k.py MODEL fp16                     # results/<model>/gsm8k/0.json and 0.jsonl
    python eval/gsm8k.py MODEL fp16 --limit 50 --backend hf
    python eval/gsm8k.py MODEL fp16 --rescore --scoring release

Reads gsm8k_test.jsonl (`question`, `answer` with the gold number after ####) or openai/gsm8k from the hub.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as `python eval/gsm8k.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.answers import gsm8k_answer, gsm8k_equal, gsm8k_gold
from eval.run.benchmark import Benchmark, prompts_for, run_models
from eval.run.data import Items, load_items
from eval.run.descriptions import Description
from eval.run.gsm8k_items import TEMPLATE, TEST
from eval.run.options import Options, benchmark_parser, read_options
from eval.scoring import packaged
from eval.scoring.verdict import Verdict
from impart.errors import InputError, run

GSM8K = Description(
    "gsm8k",
    "GSM8K",
    items=1319,
    answer_tokens=200,
    scoring='the number after the last "the answer is" is the gold one',
    source=TEST,
    template=TEMPLATE,
    scorings=("paper", "release", "math_verify"),
)
BENCHMARKS = (GSM8K,)
STOP = ("Instruction:", "Instruction", "Response:", "Response")


def gsm8k(items: Items, options: Options) -> Benchmark:
    """The benchmark as the paper ran it."""
    if options.scoring == "math_verify":
        packaged.check_package()
    for item in items.items:
        if gsm8k_gold(item["answer"]) is None:
            raise InputError(f"{items.origin}: the answer of item {item['id']} has no number after ####")
    template, prompts = prompts_for(GSM8K, [item["question"] for item in items.items], options)
    return Benchmark(
        GSM8K.name,
        items.items,
        prompts,
        1024,
        STOP,
        partial(score, scoring=options.scoring),
        {"scoring": options.scoring, "template": template, "data_sha256": items.sha256},
    )


def score(items: Sequence[Mapping[str, Any]], texts: Sequence[str], scoring: str) -> list[Verdict]:
    """The number of each completion against the gold one."""
    if scoring == "math_verify":
        return packaged.verdicts(
            [item["answer"].rpartition("####")[2].strip() for item in items], [[text] for text in texts]
        )
    answers = [gsm8k_answer(text, scoring) for text in texts]
    golds = [gsm8k_gold(item["answer"]) for item in items]
    return [Verdict(answer, gold, gsm8k_equal(answer, gold)) for answer, gold in zip(answers, golds, strict=True)]


def main(arguments: Sequence[str]) -> None:
    options = read_options(benchmark_parser(__doc__, GSM8K), arguments)
    items = load_items(TEST, options.data, options.limit, options.subset)
    run_models(lambda one: [gsm8k(items, one)], options)


if __name__ == "__main__":
    run(main)
