"""The tiny pair's three skills (math, code, chat): 200 exactly checked items each, one greedy answer per item.

    python eval/tiny.py assets/tiny/math --tasks math
    python eval/tiny.py delta_a delta_b assets/tiny/base --tasks math,code,chat --backend hf
    python eval/tiny.py delta_a fp32 --split validation

Reads assets/tiny/data/<task>_<split>.jsonl (or --data FOLDER), writes results/<model>/tiny_<task>/0.json per model and
task. Several models share one process, so that the backend hf imports its packages once.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as `python eval/tiny.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.run.benchmark import Benchmark, prompts_for, run_models
from eval.run.data import TINY_DATA, Items, Source, load_items
from eval.run.descriptions import Description
from eval.run.options import (
    Options,
    add_weak_sandbox,
    benchmark_parser,
    options_from,
    parse,
)
from eval.scoring.programs import sandbox_layers
from eval.scoring.tiny import CHECKS, SCORERS
from impart.config import Parser
from impart.errors import InputError, run

FIELDS: dict[str, dict[str, type]] = {
    "math": {"prompt": str, "answer": int},
    "code": {"prompt": str, "entry_point": str, "tests": list},
    "chat": {"prompt": str, "checks": list},
}
SCORING = {
    "math": 'the number after the last "The answer is:"',
    "code": "the function returns what its item expects on five argument lists",
    "chat": "all formal demands of the item hold",
}
SKILLS = {
    task: Description(
        f"tiny_{task}",
        f"tiny_{task}",
        items=200,
        answer_tokens=25,
        scoring=scoring,
        source=None,
        template="none",
        arguments=("--tasks", task),
        backend="hf",
        validation=("--split", "validation"),
    )
    for task, scoring in SCORING.items()
}
BENCHMARKS = tuple(SKILLS.values())
MAX_TOKENS = 96  # the longest gold completion has fewer
# The base model goes on with another item of its training text; a fine-tuned one ends by itself.
STOP = {"math": ("Question:",), "code": ("\ndef ", "\nclass "), "chat": ("Instruction:",)}


def tiny(task: str, split: str, options: Options) -> Benchmark:
    """One skill as a benchmark of its own."""
    skill = SKILLS[task]
    source = Source(skill.name, f"{task}_{split}.jsonl", FIELDS[task], id_field="id")
    items = load_items(source, options.data or TINY_DATA, options.limit, options.subset)
    if task == "chat":
        refuse_unknown_checks(items)
    template, prompts = prompts_for(skill, [item["prompt"] for item in items.items], options)
    settings = {"split": split, "template": template, "data_sha256": items.sha256}
    score = SCORERS[task]
    if task == "code":
        score = partial(score, layers=sandbox_layers(options.weak_sandbox))
    return Benchmark(skill.name, items.items, prompts, MAX_TOKENS, STOP[task], score, settings)


def refuse_unknown_checks(items: Items) -> None:
    """InputError for a demand that no rule checks."""
    for item in items.items:
        for check in item["checks"]:
            if check.get("kind") not in CHECKS:
                raise InputError(
                    f"{items.origin}: item {item['id']} has an unknown check {check.get('kind')!r}; "
                    f"known: {', '.join(CHECKS)}"
                )


def arguments_parser() -> Parser:
    """The shared flags and the tasks."""
    parser = benchmark_parser(__doc__, BENCHMARKS[0])
    parser.add_argument("--tasks", default="math,code,chat", help="comma-separated (default: math,code,chat)")
    add_weak_sandbox(parser)
    parser.add_argument(
        "--split",
        default="test",
        choices=("validation", "test"),
        help="which items; choose settings on validation, report test (default: test)",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    given = parse(arguments_parser(), arguments)
    options = options_from(given)
    tasks = [task.strip() for task in given.tasks.split(",")]
    unknown = [task for task in tasks if task not in SKILLS]
    if unknown:
        raise InputError(f"--tasks {given.tasks!r}: {unknown[0]!r} is no task; known: {', '.join(SKILLS)}")
    run_models(lambda one: [tiny(task, given.split, one) for task in tasks], options)


if __name__ == "__main__":
    run(main)
