"""IFEval: 541 prompts with instructions that a program can check, by lm-evaluation-harness; prompt-level loose accuracy.

    python eval/ifeval.py MODEL fp16                         # results/<model>/ifeval/0.json and 0.jsonl
    python eval/ifeval.py MODEL fp16 --chat_template auto    # not what the paper did: its prompts are bare
    python eval/ifeval.py MODEL fp16 --without_punkt         # only the 477 prompts that need no punkt_tab; named so

Reads ifeval.jsonl (`key, prompt, instruction_id_list, kwargs`) or google/IFEval from the hub. The harness' task
`ifeval` makes the requests, checks the answers and averages; the answers come from our engine.
"""

import contextlib
import functools
import io
import json
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

if not __package__:  # run as `python eval/ifeval.py`: import from the repository root, not from eval/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.run.benchmark import Benchmark, print_result, prompts_for, run_benchmark
from eval.run.data import Items, Source, load_items
from eval.run.options import Options, benchmark_parser, only_one_scoring, options_from, parse
from eval.run.results import Verdict, mean_score
from impart.errors import InputError, run

log = logging.getLogger(__name__)

SOURCE = Source(
    "ifeval",
    "ifeval.jsonl",
    {"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list},
    hub=("google/IFEval", None, "train"),
    id_field="key",
)
MAX_TOKENS = 1280  # max_gen_toks of the harness' task, which stops at nothing but the end of sequence
SCORED = "prompt_level_loose_acc"
METRICS = ("prompt_level_strict_acc", "inst_level_strict_acc", SCORED, "inst_level_loose_acc")
NEED_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")  # the checks that split text


def needs_punkt(item: Mapping[str, Any]) -> bool:
    """Whether one of the item's checks splits text into sentences, which nltk does with its data punkt_tab."""
    return any(name in NEED_PUNKT for name in item["instruction_id_list"])


def ifeval(options: Options, without_punkt: bool) -> Benchmark:
    """The benchmark as the paper ran it: bare prompts, the harness' settings. Everything is checked before it is asked."""
    only_one_scoring(options, "IFEval")
    items = load_items(SOURCE, options.data, None if without_punkt else options.limit, options.subset)
    if without_punkt:
        items = replace(items, items=[item for item in items.items if not needs_punkt(item)][: options.limit])
        if not items.items:
            raise InputError("--without_punkt leaves none of the chosen prompts: all of them need punkt_tab")
    check_harness()
    check_punkt(items.items)
    for item in items.items:
        check_item(item, items)
    template, prompts = prompts_for("ifeval", [item["prompt"] for item in items.items], options)
    return Benchmark(
        "ifeval_without_punkt" if without_punkt else "ifeval",
        items.items,
        prompts,
        MAX_TOKENS,
        (),
        score,
        {"template": template, "metric": SCORED, "data_sha256": items.sha256},
        summary,
    )


def check_harness() -> None:
    """The harness is installed."""
    try:
        # nltk keeps the stream that it finds here for what it says of failed downloads, which `check_punkt` says better.
        with contextlib.redirect_stderr(io.StringIO()):
            import nltk  # noqa: F401
        import immutabledict  # noqa: F401
        import langdetect  # noqa: F401
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise InputError(f"IFEval needs lm-evaluation-harness ({error}): pip install 'lm_eval[ifeval]'") from error


def check_punkt(items: Sequence[Mapping[str, Any]]) -> None:
    """nltk's punkt_tab is there, or can be fetched, or none of the items needs it. Else InputError, before generating."""
    import nltk

    needing = [item for item in items if needs_punkt(item)]
    if not needing:
        return
    with contextlib.suppress(LookupError):
        nltk.data.find("tokenizers/punkt_tab")
        return
    nltk.download("punkt_tab", quiet=True)
    with contextlib.suppress(LookupError):
        nltk.data.find("tokenizers/punkt_tab")
        return
    raise InputError(
        f"{len(needing)} of the {len(items)} prompts (the first has key {needing[0]['key']}) count sentences "
        "or capital words with nltk's punkt_tab, which is not here and cannot be downloaded; run `python "
        "-m nltk.downloader punkt_tab` where there is a network and set NLTK_DATA to the folder that holds "
        "tokenizers/punkt_tab, or leave these prompts out with --without_punkt"
    )


@functools.cache
def harness_checks():
    """The harness' scorer. Its import says on stdout that it downloaded punkt_tab, whether it did or not."""
    with contextlib.redirect_stdout(io.StringIO()):
        from lm_eval.tasks.ifeval import utils

    import langdetect

    langdetect.DetectorFactory.seed = 0  # it guesses the language of short texts at random otherwise
    return utils


def check_item(item: Mapping[str, Any], items: Items) -> None:
    """The harness can check an answer to this item: tried with one, so that nothing fails after all generation."""
    where = f"{items.origin}: the item with key {item['key']}"
    if len(item["kwargs"]) != len(item["instruction_id_list"]):
        raise InputError(
            f"{where} has {len(item['instruction_id_list'])} instructions but {len(item['kwargs'])} kwargs"
        )
    try:
        harness_checks().process_results(item, ["One word. ANOTHER word."])
    except KeyError as error:
        raise InputError(f"{where} has an instruction that the harness does not know: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} has kwargs that its instructions do not take: {error}") from error


def score(items: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Verdict]:
    """The harness' evaluation of its task `ifeval` on these items, with these texts as the model's answers."""
    harness_checks()
    import lm_eval
    from lm_eval.api.model import LM

    answers = {item["key"]: text for item, text in zip(items, texts, strict=True)}

    class Answered(LM):
        """A model that has answered already."""

        def generate_until(self, requests):
            return [answers[request.doc["key"]] for request in requests]

        def loglikelihood(self, requests):
            raise NotImplementedError("IFEval asks for text only")

        loglikelihood_rolling = loglikelihood

    with tempfile.TemporaryDirectory(prefix="ifeval-") as folder:
        tasks = lm_eval.tasks.TaskManager(include_defaults=False).load([str(local_task(items, Path(folder)))])
        result = lm_eval.evaluate(lm=Answered(), task_dict=tasks, log_samples=True, bootstrap_iters=0)
    judged = {sample["doc"]["key"]: sample for sample in result["samples"]["ifeval"]}
    verdicts = [
        Verdict(
            {metric: judged[item["key"]][metric] for metric in METRICS},
            item["instruction_id_list"],
            judged[item["key"]][SCORED],
        )
        for item in items
    ]
    for metric, value in summary(verdicts)["metrics"].items():
        if abs(value - 100 * result["results"]["ifeval"][f"{metric},none"]) > 1e-6:
            raise RuntimeError(f"{metric}: the harness averages to another number than its samples do")
    return verdicts


def local_task(items: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """The harness' own task `ifeval`, reading these items; a YAML file that includes the packaged one."""
    import lm_eval.tasks

    data, task = folder / "ifeval.jsonl", folder / "ifeval.yaml"
    fields = SOURCE.fields
    data.write_text("".join(json.dumps({name: item[name] for name in fields}) + "\n" for item in items))
    packaged = Path(lm_eval.tasks.__file__).parent / "ifeval" / "ifeval.yaml"
    task.write_text(
        yaml.safe_dump(
            {
                "include": str(packaged),
                "task": "ifeval",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"train": str(data)}, "cache_dir": str(folder / "cache")},
            }
        )
    )
    return task


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Prompt-level loose accuracy as the score, and all four of the harness' metrics, in per cent."""
    metrics = {}
    for metric in METRICS:
        values = [verdict.extracted[metric] for verdict in verdicts]
        flat = [value for row in values for value in row] if metric.startswith("inst") else values
        metrics[metric] = 100 * sum(flat) / len(flat)
    return {**mean_score(verdicts), "metrics": metrics}


def main(arguments: Sequence[str]) -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument(
        "--without_punkt",
        "--without-punkt",
        action="store_true",
        help="leave out the prompts whose checks need nltk's punkt_tab; the result is named "
        "ifeval_without_punkt, since it is another set",
    )
    given = parse(parser, arguments)
    options = options_from(given)
    print_result(run_benchmark(ifeval(options, given.without_punkt), options), options)


if __name__ == "__main__":
    run(main)
