"""AlpacaEval 2: 805 instructions, answers compared with GPT-4 Turbo's by a judge; length-controlled win rate.

    export OPENAI_API_KEY=...
    python eval/alpacaeval.py MODEL llama2                   # results/<model>/alpacaeval/0.json and 0.jsonl
    vllm serve JUDGE --port 8000 --max-logprobs 20           # or a judge of one's own:
    python eval/alpacaeval.py MODEL llama3 --judge_url http://localhost:8000/v1 --judge_model JUDGE

TEMPLATE is llama2, llama3, mistral, openchat or another of eval/run/prompts.py; without it the tokenizer's own. Reads
alpaca_eval_gpt4_1106_preview.json (`instruction, output, generator`: the reference answers) or the hub's copy. Where
the length-controlled model's data are out of reach the plain win rate is reported, under the name alpacaeval_plain.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # run as `python eval/alpacaeval.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.run.benchmark import Benchmark, prompts_for, result_name, run_models
from eval.run.data import Items, Source, find_file, load_items
from eval.run.descriptions import Description
from eval.run.options import Options, benchmark_parser, options_from, parse
from eval.scoring.judge import Judge, check_judge
from eval.scoring.winrate import LENGTH_CONTROLLED, PLAIN, Comparison, chosen_metric, is_official
from impart.config import Parser
from impart.errors import InputError, run

SOURCE = Source(
    "alpacaeval",
    "alpaca_eval_gpt4_1106_preview.json",
    {"instruction": str, "output": str, "generator": str},
    hub=("tatsu-lab/alpaca_eval", None, "eval"),
    hub_file="alpaca_eval_gpt4_baseline.json",  # the data set is a script, which newer versions of datasets do not run
)
MAX_TOKENS = 2048
JUDGE_MODEL = "gpt-4o-2024-08-06"  # the authors' script; alpaca_eval's own default is gpt-4-1106-preview
ALPACAEVAL = Description(
    "alpacaeval",
    "AlpacaEval",
    items=805,
    answer_tokens=400,
    scoring="length-controlled win rate over GPT-4 Turbo's answers, by a judge",
    source=SOURCE,
    second="template",
    also=("alpacaeval_plain",),
    needs_key=True,
)
BENCHMARKS = (ALPACAEVAL,)


def reference_answers(options: Options) -> tuple[Items, bool]:
    """The chosen instructions with GPT-4 Turbo's answers, and whether they are the first of the official 805."""
    everything = load_items(SOURCE, options.data)
    items = load_items(SOURCE, options.data, options.limit, options.subset)
    instructions = [item["instruction"] for item in everything.items]
    if len(set(instructions)) < len(instructions):
        raise InputError(
            f"{everything.origin}: an instruction occurs twice; alpaca_eval tells answers apart by their instruction"
        )
    prefix = [item["id"] for item in items.items] == [item["id"] for item in everything.items[: len(items.items)]]
    return items, prefix and (find_file(SOURCE, options.data) is None or is_official(instructions))


def alpacaeval(options: Options, judge: Judge, metric: str, gamed: Path | None) -> Benchmark:
    """The benchmark as the paper ran it. The judge and its data are checked before anything is generated."""
    items, official = reference_answers(options)
    metric = chosen_metric(metric, official, gamed)
    benchmark = ALPACAEVAL.name if metric == LENGTH_CONTROLLED else "alpacaeval_plain"
    template, prompts = prompts_for(ALPACAEVAL, [item["instruction"] for item in items.items], options)
    name = result_name(options)
    verdicts = options.results_dir / name / benchmark / f"{options.seed}.verdicts.cache"
    check_judge(judge)
    comparison = Comparison(judge, metric, verdicts, name, gamed)
    return Benchmark(
        benchmark,
        items.items,
        prompts,
        MAX_TOKENS,
        (),
        comparison.score,
        {"template": template, "metric": metric, "judge": judge.settings, "data_sha256": items.sha256},
        comparison.summary,
    )


def parser() -> Parser:
    """MODEL, TEMPLATE, the shared flags and the judge's."""
    flags = benchmark_parser(__doc__, ALPACAEVAL)
    flags.add_argument("--judge_model", "--judge-model", default=JUDGE_MODEL, help=f"(default: {JUDGE_MODEL})")
    flags.add_argument(
        "--judge_url",
        "--judge-url",
        help="OpenAI-compatible endpoint, http://HOST:PORT/v1 (default: OPENAI_BASE_URL, else OpenAI)",
    )
    flags.add_argument(
        "--judge_options",
        "--judge-options",
        metavar="JSON",
        default="{}",
        help='changes to the request, such as {"top_logprobs": 20, "num_procs": 32}',
    )
    flags.add_argument(
        "--metric",
        default="auto",
        choices=("auto", LENGTH_CONTROLLED, PLAIN),
        help="auto: length-controlled where its data can be had, else plain (default)",
    )
    flags.add_argument(
        "--df_gamed",
        "--df-gamed",
        type=Path,
        metavar="FILE",
        help="df_gamed.csv of tatsu-lab/alpaca_eval (default: the one in IMPART_DATA, else from the hub)",
    )
    return flags


def main(arguments: Sequence[str]) -> None:
    given = parse(parser(), arguments)
    if given.template and given.chat_template and given.template != given.chat_template:
        raise InputError(
            f"TEMPLATE {given.template!r} and --chat_template {given.chat_template!r} differ; give one of them"
        )
    try:
        judge_options = json.loads(given.judge_options)
        if not isinstance(judge_options, dict):
            raise ValueError("a mapping is wanted")
    except ValueError as error:
        raise InputError(f"--judge_options {given.judge_options!r} is not a JSON mapping ({error})") from error
    options = replace(options_from(given), chat_template=given.template or given.chat_template or "auto")
    local = Path(os.environ.get("IMPART_DATA") or ".") / "df_gamed.csv"
    gamed = given.df_gamed or (local if os.environ.get("IMPART_DATA") and local.is_file() else None)
    judge = Judge(given.judge_model, given.judge_url, judge_options)
    run_models(lambda one: [alpacaeval(one, judge, given.metric, gamed)], options)


if __name__ == "__main__":
    run(main)
