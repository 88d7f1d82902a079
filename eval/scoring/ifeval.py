"""IFEval by lm-evaluation-harness: what its task `ifeval` needs, and its verdicts on answers that are there already."""

import contextlib
import functools
import io
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.scoring.verdict import Verdict
from impart.errors import InputError

log = logging.getLogger(__name__)

FIELDS = {"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list}  # of an item
SCORED = "prompt_level_loose_acc"
METRICS = ("prompt_level_strict_acc", "inst_level_strict_acc", SCORED, "inst_level_loose_acc")
NEED_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")  # the checks that split text


def needs_punkt(item: Mapping[str, Any]) -> bool:
    """Whether one of the item's checks splits text into sentences, which nltk does with its data punkt_tab."""
    return any(name in NEED_PUNKT for name in item["instruction_id_list"])


def check_harness() -> None:
    """InputError where the harness is not installed."""
    try:
        # nltk keeps the stderr of its import for messages on failed downloads, which `check_punkt` words better.
        with contextlib.redirect_stderr(io.StringIO()):
            import nltk  # noqa: F401
        import immutabledict  # noqa: F401
        import langdetect  # noqa: F401
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise InputError(f"IFEval needs lm-evaluation-harness ({error}): pip install 'lm_eval[ifeval]'") from error


def check_punkt(items: Sequence[Mapping[str, Any]]) -> None:
    """InputError, before generating, where items need nltk's punkt_tab and it is neither here nor can be fetched."""
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
    """The harness' scorer. Its import prints that it downloaded punkt_tab, whether it did or not."""
    with contextlib.redirect_stdout(io.StringIO()):
        from lm_eval.tasks.ifeval import utils

    import langdetect

    langdetect.DetectorFactory.seed = 0  # without it the language of short texts is guessed at random
    return utils


def check_item(item: Mapping[str, Any], origin: str) -> None:
    """InputError where the harness cannot check answers to this item; tried now, not after hours of generating."""
    where = f"{origin}: the item with key {item['key']}"
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

    failures = [_failure(item, text) for item, text in zip(items, texts, strict=True)]
    # An empty answer follows no instruction.
    answers = {item["key"]: "" if failure else text for item, text, failure in zip(items, texts, failures, strict=True)}

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
            failure,
        )
        for item, failure in zip(items, failures, strict=True)
    ]
    for metric, value in metrics_of(verdicts).items():
        if abs(value - 100 * result["results"]["ifeval"][f"{metric},none"]) > 1e-6:
            raise RuntimeError(f"{metric}: the harness averages to another number than its samples do")
    return verdicts


def _failure(item: Mapping[str, Any], text: str) -> str:
    """Why the harness cannot check this answer, as with JSON that is nested absurdly; empty where it can."""
    try:
        harness_checks().process_results(item, [text])
    except (RecursionError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        log.warning("item %s: the harness cannot check the answer (%s)", item["key"], type(error).__name__)
        return f"the harness cannot check it: {type(error).__name__}"
    return ""


def local_task(items: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """The harness' own task `ifeval`, reading these items; a YAML file that includes the packaged one."""
    import lm_eval.tasks

    data, task = folder / "ifeval.jsonl", folder / "ifeval.yaml"
    data.write_text("".join(json.dumps({name: item[name] for name in FIELDS}) + "\n" for item in items))
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


def metrics_of(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """All four of the harness' metrics, in per cent."""
    metrics = {}
    for metric in METRICS:
        values = [verdict.extracted[metric] for verdict in verdicts]
        flat = [value for row in values for value in row] if metric.startswith("inst") else values
        metrics[metric] = 100 * sum(flat) / len(flat)
    return metrics
