"""AlpacaEval's win rates: the package alpaca_eval compares answers with references, asks the judge and averages."""

import contextlib
import hashlib
import json
import logging
import numbers
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.scoring.judge import Judge, annotator_folder
from eval.scoring.verdict import Verdict
from impart.errors import InputError, reason_of
from impart.files import write_atomically
from impart.hub import fetch_file

log = logging.getLogger(__name__)

# Of the 805 instructions as a JSON list: df_gamed.csv counts them by position.
OFFICIAL_SHA256 = "c5770d532bf3f697768ed9a57a05d8b58b2617321ca65070620f059676e7c99a"
READABLE = 0.99  # least share of verdicts that must be read: the score of the others alone is not one of all
LENGTH_CONTROLLED, PLAIN = "length_controlled_winrate", "win_rate"
STANDARD_ERRORS = {LENGTH_CONTROLLED: "lc_standard_error", PLAIN: "standard_error"}


class Comparison:
    """Scores answers by the judge; the win rate belongs to all of them together, not to each."""

    def __init__(self, judge: Judge, metric: str, verdicts: Path, name: str, gamed: Path | None):
        self.judge, self.metric, self.verdicts, self.name, self.gamed = judge, metric, verdicts, name, gamed
        self.metrics: dict[str, float] = {}

    def score(self, items: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Verdict]:
        """One verdict per item: correct where the judge prefers the answer to the reference.

        Verdicts that cannot be read are asked for once more; InputError where more than a few are left.
        """
        outputs = [
            {"instruction": item["instruction"], "output": text} for item, text in zip(items, texts, strict=True)
        ]
        references = [{name: item[name] for name in ("instruction", "output", "generator")} for item in items]
        for last in (False, True):
            self.metrics, annotations = compare(
                self.judge, outputs, references, self.name, self.verdicts, self.metric, self.gamed
            )
            by_instruction = {row["instruction"]: row["preference"] for row in annotations}
            preferences = [by_instruction.get(item["instruction"]) for item in items]  # from 1 (reference) to 2
            unread = [preference is None or preference != preference for preference in preferences]
            if not any(unread) or last:
                break
            log.warning("%d of %d verdicts cannot be read; asking for them once more", sum(unread), len(unread))
        if sum(unread) > (1 - READABLE) * len(unread):
            raise InputError(
                f"{sum(unread)} of {len(unread)} verdicts of the judge {self.judge.model!r} cannot be read: they have "
                "no token probabilities (logprobs), or neither m nor M is among them; the answers and the other "
                "verdicts are kept, run the same command again or take another judge"
            )
        return [
            Verdict(
                None if missing else preference,
                None,
                not missing and preference > 1.5,
                "the judge's verdict could not be read" if missing else "",
            )
            for preference, missing in zip(preferences, unread, strict=True)
        ]

    def summary(self, verdicts: Sequence[Verdict]) -> dict[str, Any]:
        """The win rate as the score, and everything else that alpaca_eval computed."""
        metrics = {key: float(value) for key, value in self.metrics.items() if isinstance(value, numbers.Real)}
        stderr = metrics.get(STANDARD_ERRORS[self.metric])
        return {
            "score": metrics[self.metric],
            "stderr": None if stderr != stderr else stderr,
            "metrics": metrics,
            "verdicts": sum(verdict.extracted is not None for verdict in verdicts),
        }


def compare(
    judge: Judge,
    outputs: Sequence[dict],
    references: Sequence[dict],
    name: str,
    verdicts: Path,
    metric: str,
    gamed: Path | None = None,
) -> tuple[dict[str, float], list[dict]]:
    """(alpaca_eval's metrics, one annotation per pair, in order). Verdicts are kept in the file `verdicts`."""
    import openai
    from alpaca_eval.main import evaluate

    verdicts.parent.mkdir(parents=True, exist_ok=True)
    forget_unread(verdicts)
    length_controlled = metric == LENGTH_CONTROLLED
    with annotator_folder(judge) as folder, gamed_baselines(gamed if length_controlled else None), _quiet():
        try:
            board, annotations = evaluate(
                model_outputs=[{**output, "generator": name} for output in outputs],
                reference_outputs=list(references),
                annotators_config=folder,
                name=name,
                output_path=None,
                precomputed_leaderboard=None,
                is_return_instead_of_print=True,
                is_cache_leaderboard=False,
                sort_by=metric,
                fn_metric=f"get_{'length_controlled_winrate' if length_controlled else 'winrate'}",
                metric_kwargs={"save_weights_dir": None} if length_controlled else None,  # else into the package
                annotation_kwargs={"is_ordered": True, "chunksize": 32},
                caching_path=verdicts,
                Annotator=_annotator_class(),
            )
        except openai.OpenAIError as error:
            raise InputError(
                f"the judge {judge.model!r} failed: {reason_of(error)}; the answers and the verdicts so far are "
                "kept, run the same command again"
            ) from error
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise InputError(
                f"the judge {judge.model!r} gave no readable verdict in {len(outputs)} comparisons "
                f"({reason_of(error)}): no token probabilities, or neither m nor M among its likeliest tokens; the "
                f"answers are kept, and {forget_unread(verdicts)} verdicts; run the same command again or take "
                "another judge"
            ) from error
    return dict(board.loc[name]), annotations


def _annotator_class() -> type:
    """The package's annotator; it fails where all stored verdicts are whole numbers, which come back as integers."""
    from alpaca_eval.annotators import PairwiseAnnotator

    class Annotator(PairwiseAnnotator):
        def load_(self, path=None) -> None:
            super().load_(path)
            if self.df_annotations is not None:
                self.df_annotations = self.df_annotations.astype({self.annotation_key: float})

    return Annotator


def forget_unread(verdicts: Path) -> int:
    """Removes unreadable verdicts from the file, so that the judge is asked again; returns how many are left."""
    if not verdicts.is_file():
        return 0
    rows = [row for row in json.loads(verdicts.read_text()) if row["preference"] is not None and row["preference"] >= 0]
    if rows:
        write_atomically(verdicts, json.dumps(rows, indent=2).encode())
    else:
        verdicts.unlink()
    return len(rows)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what alpaca_eval logs about every request; its warnings and errors still come."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def gamed_baselines(file: Path | None) -> Iterator[None]:
    """Lets the length-controlled model read `file` where it would ask the hub for df_gamed.csv."""
    from alpaca_eval.metrics import glm_winrate

    asked = glm_winrate.hf_hub_download
    if file is not None:
        glm_winrate.hf_hub_download = lambda **_: str(file)
    try:
        yield
    finally:
        glm_winrate.hf_hub_download = asked


def chosen_metric(wanted: str, official: bool, gamed: Path | None) -> str:
    """Length-controlled where it can be computed, else plain. InputError where the wanted one cannot."""
    if wanted == PLAIN:
        return PLAIN
    problem = (
        _gamed_problem(gamed)
        if official
        else "it counts the 805 official instructions by position, and these are not they, or not the first of them"
    )
    if problem is None:
        return LENGTH_CONTROLLED
    if wanted == LENGTH_CONTROLLED:
        raise InputError(f"--metric {LENGTH_CONTROLLED}: {problem}; or take --metric {PLAIN}")
    log.warning(
        "the length-controlled win rate cannot be computed: %s. Reporting the plain win rate, as alpacaeval_plain",
        problem,
    )
    return PLAIN


def is_official(instructions: Sequence[str]) -> bool:
    """Whether these are AlpacaEval's 805 instructions in their order."""
    return hashlib.sha256(json.dumps(list(instructions)).encode()).hexdigest() == OFFICIAL_SHA256


def _gamed_problem(gamed: Path | None) -> str | None:
    """Why the file with the verdicts on gamed baselines, which length control needs, cannot be read; else None."""
    if gamed is not None:
        return None if gamed.is_file() else f"--df_gamed {gamed} does not exist"
    try:
        fetch_file(
            "tatsu-lab/alpaca_eval",
            "df_gamed.csv",
            kind="dataset",
            what="length control",
            remedy="give --df_gamed FILE",
        )
    except InputError as error:
        return str(error)
    return None
