"""The tiny pair's three skills (math, code, chat): 200 exactly checked items each, one greedy answer per item.

    python eval/tiny.py assets/tiny/math --tasks math
    python eval/tiny.py delta_a delta_b assets/tiny/base --tasks math,code,chat --backend hf
    python eval/tiny.py delta_a fp32 --split validation

Reads assets/tiny/data/<task>_<split>.jsonl (or --data FOLDER), writes results/<model>/tiny_<task>/0.json per model and
task. Several models share one process, so that the backend hf imports its packages once.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as `python eval/tiny.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.engine.models import model_name
from eval.run.benchmark import Benchmark, print_result, prompts_for, run_benchmarks
from eval.run.data import Items, Source, load_items
from eval.run.options import Options, benchmark_parser, options_from, parse
from eval.run.results import Verdict
from eval.sandbox.pool import run_programs
from impart.config import Parser
from impart.errors import InputError, run

DATA = Path(__file__).resolve().parents[1] / "assets" / "tiny" / "data"
FIELDS = {
    "math": {"prompt": str, "answer": int},
    "code": {"prompt": str, "entry_point": str, "tests": list},
    "chat": {"prompt": str, "checks": list},
}
SECONDS = 10.0  # per program, which takes milliseconds unless it never ends: room for a machine that is busy
MAX_TOKENS = 96  # the longest gold completion has fewer
# The base model goes on with another item of its training text; a fine-tuned one ends by itself.
STOP = {"math": ("Question:",), "code": ("\ndef ", "\nclass "), "chat": ("Instruction:",)}


def tiny(task: str, split: str, options: Options) -> Benchmark:
    """One skill as a benchmark of its own."""
    source = Source(f"tiny_{task}", f"{task}_{split}.jsonl", FIELDS[task], id_field="id")
    items = load_items(source, options.data or DATA, options.limit, options.subset)
    template, prompts = prompts_for(source.benchmark, [item["prompt"] for item in items.items], options)
    return Benchmark(
        source.benchmark,
        items.items,
        prompts,
        MAX_TOKENS,
        STOP[task],
        scorer(task, items),
        {"split": split, "template": template, "data_sha256": items.sha256},
    )


def scorer(task: str, items: Items) -> Callable[[Sequence[Mapping[str, Any]], Sequence[str]], list[Verdict]]:
    """The check of a skill."""
    if task == "chat":
        for item in items.items:
            for check in item["checks"]:
                if check.get("kind") not in CHECKS:
                    raise InputError(
                        f"{items.origin}: item {item['id']} has an unknown check {check.get('kind')!r}; "
                        f"known: {', '.join(CHECKS)}"
                    )
    return {"math": score_math, "code": score_code, "chat": score_chat}[task]


def score_math(items: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Verdict]:
    """The number after the last "The answer is:"."""
    found = [re.findall(r"The answer is: ?(-?[0-9]{1,9})(?![0-9])", text) for text in texts]
    answers = [int(numbers[-1]) if numbers else None for numbers in found]
    return [
        Verdict(answer, item["answer"], answer == item["answer"]) for item, answer in zip(items, answers, strict=True)
    ]


def score_code(items: Sequence[Mapping[str, Any]], texts: Sequence[str], timeout_s: float = SECONDS) -> list[Verdict]:
    """The completed function, run in the sandbox on every argument list of the item."""
    programs = [program(item, text) for item, text in zip(items, texts, strict=True)]
    outcomes = run_programs(programs, timeout_s=timeout_s)
    return [
        Verdict(text, None, outcome.passed, "" if outcome.passed else outcome.detail)
        for text, outcome in zip(texts, outcomes, strict=True)
    ]


def program(item: Mapping[str, Any], completion: str) -> str:
    """The function and its tests as one program; results are compared as JSON, so that 1 is not True."""
    return (
        f"{item['prompt']}{completion}\n\n"
        f"import json\n"
        f"for case in json.loads({json.dumps(json.dumps(item['tests']))}):\n"
        f"    result = json.dumps({item['entry_point']}(*case['args']))\n"
        f"    assert result == json.dumps(case['expect']), f\"{{case['args']}}: {{result}}\"\n"
    )


def score_chat(items: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Verdict]:
    """All formal demands of an item hold; `extracted` lists the ones that do not."""
    failed = [
        [check for check in item["checks"] if not holds(check, text)] for item, text in zip(items, texts, strict=True)
    ]
    return [Verdict(failures, [], not failures) for failures in failed]


def holds(check: Mapping[str, Any], completion: str) -> bool:
    """One formal demand on an answer."""
    text = completion.strip()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return CHECKS[check["kind"]](text, lines, re.findall(r"[a-z0-9]+", text.lower()), check.get("value"))


# kind -> (text, its non-empty lines, its words in small letters, the check's value) -> whether the demand is met
CHECKS: dict[str, Callable[[str, list[str], list[str], Any], bool]] = {
    "uppercase": lambda text, lines, words, value: text.isupper(),
    "lowercase": lambda text, lines, words, value: text.islower(),
    "quoted": lambda text, lines, words, value: bool(re.fullmatch(r'"[^"]+"', text)),
    "starts_with": lambda text, lines, words, value: words[:1] == [value],
    "ends_with": lambda text, lines, words, value: words[-1:] == [value],
    "ends_with_mark": lambda text, lines, words, value: text.removesuffix('"').endswith(value),
    "include": lambda text, lines, words, value: value in words,
    "exclude": lambda text, lines, words, value: bool(words) and value not in words,
    "repeat": lambda text, lines, words, value: words == [value[0]] * value[1],
    "lines": lambda text, lines, words, value: len(lines) == value,
    "sentences": lambda text, lines, words, value: len(re.findall(r"[.!?]+", text)) == value,
    "bullets": lambda text, lines, words, value: len(lines) == value and all(re.match(r"- \S", line) for line in lines),
    "numbered": lambda text, lines, words, value: (
        len(lines) == value and all(re.match(rf"{number}\. \S", line) for number, line in enumerate(lines, start=1))
    ),
}


def arguments_parser() -> Parser:
    """The shared flags, with several models and the tasks."""
    parser = benchmark_parser(__doc__, several_models=True)
    parser.add_argument("--tasks", default="math,code,chat", help="comma-separated (default: math,code,chat)")
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
    unknown = [task for task in tasks if task not in FIELDS]
    if unknown:
        raise InputError(f"--tasks {given.tasks!r}: {unknown[0]!r} is no task; known: {', '.join(FIELDS)}")
    if options.name and len(given.models) > 1:
        raise InputError("--name names one model, but several are given; leave it out")
    names = [model_name(model) for model in given.models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(
            f"two models are called {twice!r}, and their results would have one file name; run them one "
            "by one with --name"
        )
    for model in given.models:
        one = replace(options, model=model)
        for result in run_benchmarks([tiny(task, given.split, one) for task in tasks], one):
            print_result(result, one)


if __name__ == "__main__":
    run(main)
