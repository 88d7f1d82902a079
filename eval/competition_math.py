"""MATH: 5000 competition problems with LaTeX answers, one greedy answer each.

    python eval/competition_math.py MODEL fp16          # results/<model>/math/0.json and 0.jsonl
    python eval/competition_math.py MODEL fp16 --subset "type=Algebra" --limit 50
    python eval/competition_math.py MODEL fp16 --rescore --scoring release

Reads math_test.jsonl (`problem`, `solution` with the gold answer in its last \\boxed{}) or the hub's copy of the set.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as `python eval/competition_math.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.answers import math_answer, math_equal, math_gold
from eval.run.benchmark import Benchmark, prompts_for, run_models
from eval.run.data import Items, Source, load_items
from eval.run.descriptions import Description
from eval.run.options import Options, benchmark_parser, read_options
from eval.scoring import packaged
from eval.scoring.verdict import Verdict
from impart.errors import InputError, run

SOURCE = Source(
    "math",
    "math_test.jsonl",
    {"problem": str, "solution": str},
    hub=("DigitalLearningGmbH/MATH-lighteval", "default", "test"),
)
MATH = Description(
    "math",
    "MATH",
    items=5000,
    answer_tokens=400,
    scoring="the LaTeX answer equals the gold one once notation is normalised",
    source=SOURCE,
    template="wizardmath",
    scorings=("paper", "release", "math_verify"),
)
BENCHMARKS = (MATH,)
STOP = ("Instruction:", "Instruction", "Response:", "Response")


def competition_math(items: Items, options: Options) -> Benchmark:
    """The benchmark as the paper ran it."""
    if options.scoring == "math_verify":
        packaged.check_package()
    for item in items.items:
        if math_gold(item["solution"]) is None:
            raise InputError(f"{items.origin}: the solution of item {item['id']} has no \\boxed{{}} answer")
    template, prompts = prompts_for(MATH, [item["problem"] for item in items.items], options)
    return Benchmark(
        MATH.name,
        items.items,
        prompts,
        2048,
        STOP,
        partial(score, scoring=options.scoring),
        {"scoring": options.scoring, "template": template, "data_sha256": items.sha256},
    )


def score(items: Sequence[Mapping[str, Any]], texts: Sequence[str], scoring: str) -> list[Verdict]:
    """The LaTeX answer of each completion against the gold one."""
    golds = [math_gold(item["solution"]) or "" for item in items]
    if scoring == "math_verify":
        # The package reads LaTeX in $...$ and \boxed{...} alone; the prompt's "The answer is:" often stands before it.
        marked = [math_answer(text) for text in texts]
        texts_read = [
            [f"\\boxed{{{answer}}}", text] if answer else [text] for answer, text in zip(marked, texts, strict=True)
        ]
        return packaged.verdicts(golds, texts_read)
    answers = [math_answer(text, scoring) for text in texts]
    return [
        Verdict(answer, gold, math_equal(answer, gold, scoring)) for answer, gold in zip(answers, golds, strict=True)
    ]


def main(arguments: Sequence[str]) -> None:
    options = read_options(benchmark_parser(__doc__, MATH), arguments)
    items = load_items(SOURCE, options.data, options.limit, options.subset)
    run_models(lambda one: [competition_math(items, one)], options)


if __name__ == "__main__":
    run(main)
