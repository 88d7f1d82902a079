"""IFEval: 541 prompts with instructions that lm-evaluation-harness checks; prompt-level loose accuracy.

    python eval/ifeval.py MODEL fp16                         # results/<model>/ifeval/0.json and 0.jsonl
    python eval/ifeval.py MODEL fp16 --chat_template auto    # not what the paper did: its prompts are bare
    python eval/ifeval.py MODEL fp16 --bos                   # not either: they begin with no begin-of-sequence token
    python eval/ifeval.py MODEL fp16 --without_punkt         # only the 477 prompts that need no punkt_tab; named so

Reads ifeval.jsonl (`key, prompt, instruction_id_list, kwargs`) or google/IFEval from the hub. The harness' task
`ifeval` makes the requests, checks the answers and averages; the answers come from our engine.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as `python eval/ifeval.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.run.benchmark import Benchmark, prompts_for, run_models
from eval.run.data import Source, load_items
from eval.run.descriptions import Description
from eval.run.options import Options, benchmark_parser, options_from, parse
from eval.run.results import mean_score
from eval.scoring.ifeval import FIELDS, SCORED, check_harness, check_item, check_punkt, metrics_of, needs_punkt, score
from eval.scoring.verdict import Verdict
from impart.errors import InputError, run

SOURCE = Source("ifeval", "ifeval.jsonl", FIELDS, hub=("google/IFEval", None, "train"), id_field="key")
IFEVAL = Description(
    "ifeval",
    "IFEval",
    items=541,
    answer_tokens=400,
    scoring="prompt-level loose accuracy: the harness finds all instructions of a prompt followed",
    source=SOURCE,
    template="none",
)
BENCHMARKS = (IFEVAL,)
MAX_TOKENS = 1280  # max_gen_toks of the harness' task, which stops at nothing but the end of sequence


def ifeval(options: Options, without_punkt: bool) -> Benchmark:
    """The benchmark as the paper ran it: bare prompts, the harness' settings. Checks everything before generating."""
    items = load_items(SOURCE, options.data, None if without_punkt else options.limit, options.subset)
    if without_punkt:
        items = replace(items, items=[item for item in items.items if not needs_punkt(item)][: options.limit])
        if not items.items:
            raise InputError("--without_punkt leaves none of the chosen prompts: all of them need punkt_tab")
    check_harness()
    check_punkt(items.items)
    for item in items.items:
        check_item(item, items.origin)
    # As lm-eval's backend for vLLM had it in 2025 (add_bos_token=False): the tokenizer adds nothing.
    template, prompts = prompts_for(
        IFEVAL, [item["prompt"] for item in items.items], options, special_tokens=options.bos
    )
    return Benchmark(
        "ifeval_without_punkt" if without_punkt else IFEVAL.name,
        items.items,
        prompts,
        MAX_TOKENS,
        (),
        score,
        {"template": template, "bos": options.bos, "metric": SCORED, "data_sha256": items.sha256},
        summary,
        special_tokens=options.bos,
    )


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Prompt-level loose accuracy as the score, and all four of the harness' metrics, in per cent."""
    return {**mean_score(verdicts), "metrics": metrics_of(verdicts)}


def main(arguments: Sequence[str]) -> None:
    parser = benchmark_parser(__doc__, IFEVAL)
    parser.add_argument(
        "--without_punkt",
        "--without-punkt",
        action="store_true",
        help="leave out the prompts whose checks need nltk's punkt_tab; the result is named "
        "ifeval_without_punkt, since it is another set",
    )
    parser.add_argument(
        "--bos",
        action="store_true",
        help="let the tokenizer begin each prompt with its begin-of-sequence token, which the paper's backend did not",
    )
    given = parse(parser, arguments)
    options = options_from(given)
    run_models(lambda one: [ifeval(one, given.without_punkt)], options)


if __name__ == "__main__":
    run(main)
