"""Held-out loss: the mean negative log-likelihood of gold completions, in nats per token; lower is better.

    python eval/loss.py assets/tiny/base assets/tiny/math delta_a --tasks math
    python eval/loss.py delta_a fp32 --tasks math,code,chat --split validation
    python eval/loss.py MODEL fp32 --tasks gsm8k --limit 200
    python eval/loss.py MODEL fp32 --data FILE

Reads assets/tiny/data/<task>_<split>.jsonl, GSM8K's test set (its validation items are the training set's last 200), or
a FILE with `prompt` and `completion` on every line; writes results/<model>/loss_<task>/0.json
(results/<model>/loss/0.json for a FILE without --tasks). Prompts are those that the benchmark of the task asks. It
tells methods apart where accuracy on as many items cannot: every token of an answer counts, and a little. The tables
say beside it which share of the gain of fine-tuning is kept.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as `python eval/loss.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.engine.engine import chosen_dtype
from eval.engine.models import ModelSource
from eval.engine.settings import longest_sequence
from eval.report.cells import NATS
from eval.run.benchmark import prompts_for, result_name, said_spread
from eval.run.data import TINY_DATA, Items, Source, load_items
from eval.run.descriptions import Description
from eval.run.gsm8k_items import TEMPLATE, TEST, solutions
from eval.run.options import Options, benchmark_parser, options_from, parse
from eval.run.results import Z95, Run
from eval.scoring.tiny import SCORERS
from impart.config import Parser
from impart.errors import InputError, run
from impart.pretrained import load_pretrained
from impart.tokenizer import load_tokenizer

FIELDS: dict[str, type] = {"prompt": str, "completion": str}
ITEMS = 100  # of a task's 200 or more: enough here, and half the time
BATCH = 16  # longer ones spend more on padding and on logits than they save


@dataclass(frozen=True)
class Golds:
    """Where the gold completions of a task are, and how its benchmark asks for them."""

    read: Callable[[str, Path | None, int | None, str | None], Items]  # (split, data, limit, subset) -> items
    source: Source | None = None  # see `Description`
    template: str = "none"


def lines(name: str, split: str, data: Path | None, limit: int | None, subset: str | None) -> Items:
    """`prompt` and `completion` of every line of assets/tiny/data/<name>_<split>.jsonl, or of a file of the user's."""
    return load_items(Source("eval/loss.py", f"{name}_{split}.jsonl", FIELDS), data or TINY_DATA, limit, subset)


GOLDS = {task: Golds(partial(lines, task)) for task in SCORERS} | {"gsm8k": Golds(solutions, TEST, TEMPLATE)}
LOSSES = {
    task: Description(
        f"loss_{task}",
        f"{task}, held-out loss",
        items=ITEMS,
        answer_tokens=0,
        scoring="mean negative log-likelihood of the gold completion's tokens, in nats",
        source=golds.source,
        template=golds.template,
        arguments=("--tasks", task),
        backend="hf",
        validation=("--split", "validation"),
    )
    for task, golds in GOLDS.items()
}
BENCHMARKS = tuple(LOSSES.values())


@dataclass(frozen=True)
class Asked:
    """Gold completions of one task, and the name of its results."""

    name: str
    items: Items
    split: str | None  # None: of a file of the user's
    template: str
    prompts: Sequence[str]


def asked(task: str | None, split: str, options: Options) -> Asked:
    """The items of a task, or those of --data."""
    read = GOLDS[task].read if task else partial(lines, "completions")
    items = read(split, options.data, options.limit, options.subset)
    if any(not item["completion"] for item in items.items):
        raise InputError(f"{items.origin}: an item has an empty completion, whose loss is nothing")
    description = LOSSES[task] if task else BENCHMARKS[0]
    template, prompts = prompts_for(description, [item["prompt"] for item in items.items], options)
    own = None if options.data and options.data.is_file() else split
    return Asked(f"loss_{task}" if task else "loss", items, own, template, prompts)


def evaluate(what: Asked, options: Options) -> dict:
    """The result of one model on one task: read where it is done, else computed and saved."""
    assert options.model
    source = ModelSource(options.model, options.base_model)
    dtype = chosen_dtype("hf", source.dtype) if options.dtype == "auto" else options.dtype
    settings: dict[str, Any] = {
        "n": len(what.items.items),
        "split": what.split,
        "template": what.template,
        "data_sha256": what.items.sha256,
        **source.identity,
        "backend": "hf",
        "dtype": dtype,
    }
    saved = Run(options.results_dir, result_name(options), what.name, options.seed)
    found = saved.finished(settings, overwrite=options.overwrite)
    if found:
        return found
    saved.start(settings, overwrite=options.overwrite)
    started = time.monotonic()
    samples = measured(source, what, dtype)
    saved.seconds = time.monotonic() - started
    losses = [sample["loss"] for sample in samples]
    return saved.finish(
        samples,
        settings=settings,
        summary=summary(losses),
        tokens=sum(sample["tokens"] for sample in samples),
        more={"source": source.source, "delta": source.delta_facts},
    )


def measured(source: ModelSource, what: Asked, dtype: str) -> list[dict]:
    """Every item with its loss; InputError for one that is longer than the model can read."""
    from transformers import AutoConfig  # seconds of import that tables and plans do without

    from eval.engine.hf import HfModel
    from eval.engine.likelihood import completion_losses, example

    tokenizer, items = load_tokenizer(source.tokenizer_folder), what.items.items
    examples = [
        example(tokenizer, prompt, item["completion"]) for prompt, item in zip(what.prompts, items, strict=True)
    ]
    positions = longest_sequence(load_pretrained(AutoConfig, source.tokenizer_folder, what="config"), None)
    for item, (prompt, answer) in zip(items, examples, strict=True):
        if len(prompt) + len(answer) > positions:
            raise InputError(
                f"{what.items.origin}: item {item['id']} has {len(prompt) + len(answer)} tokens, and the model "
                f"reads {positions}; leave it out with --subset"
            )
    model = HfModel(source.weights(), tokenizer, dtype=dtype, max_model_len=positions, batch_size=BATCH)
    losses = completion_losses(model.model, examples, BATCH)
    model.close()
    return [
        {"id": item["id"], "prompt": prompt, "completion": item["completion"], "loss": loss, "tokens": len(answer)}
        for item, prompt, loss, (_, answer) in zip(items, what.prompts, losses, examples, strict=True)
    ]


def summary(losses: Sequence[float]) -> Mapping[str, Any]:
    """Mean over items, its standard error, and the normal distribution's 95 % interval."""
    mean = statistics.fmean(losses)
    error = statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return {
        "measure": NATS,
        "score": mean,
        "stderr": error,
        "interval_95": (mean - Z95 * error, mean + Z95 * error),
    }


def arguments_parser() -> Parser:
    """The shared flags, with several models and the tasks."""
    parser = benchmark_parser(__doc__, BENCHMARKS[0])
    parser.set_defaults(limit=ITEMS)
    parser.add_argument("--tasks", help=f"comma-separated, of {','.join(LOSSES)} (default: none, with --data)")
    parser.add_argument(
        "--split", default="test", choices=("validation", "test"), help="which items of a task (default: test)"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    given = parse(arguments_parser(), arguments)
    options = options_from(given)
    if options.rescore or options.backend == "vllm":
        raise InputError("a loss has no completions to score again, and is computed by the backend hf alone")
    if not given.tasks and not options.data:
        raise InputError(
            f"name --tasks, of {', '.join(LOSSES)}, or --data FILE with prompt and completion on every line"
        )
    tasks: list[str | None] = [task.strip() for task in given.tasks.split(",")] if given.tasks else [None]
    unknown = [task for task in tasks if task and task not in LOSSES]
    if unknown:
        raise InputError(f"--tasks {given.tasks!r}: {unknown[0]!r} is no task; known: {', '.join(LOSSES)}")
    for model in options.models:
        one = replace(options, models=(model,))
        for task in tasks:
            result = evaluate(asked(task, given.split, one), one)
            print(
                f"{result['benchmark']}  {result['model']}  {result['score']:.4f}{said_spread(result, digits=4)}  "
                f"(n = {result['n']})"
            )


if __name__ == "__main__":
    run(main)
