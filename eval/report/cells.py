"""Cells of tables: the runs of one setting, which differ in their seed, as a mean with its interval. Pure functions."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from eval.run.descriptions import PAPER
from eval.run.results import wilson_interval
from impart.errors import InputError


@dataclass(frozen=True)
class Scored:
    """One result file: a model on a benchmark, and per item whether it was right."""

    benchmark: str
    model: str
    method: str | None  # as tables call it; None: a whole checkpoint
    ratio: float | None  # nominal
    settings: tuple[tuple[str, str], ...]
    score: float
    byte_ratio: float | None  # of the linear layers, true
    correct: tuple[float, ...]
    mark: str = ""  # what sets the score apart from one by the paper's rule: "scoring: release"


@dataclass(frozen=True)
class Cell:
    """The runs of one method at one ratio, which differ in their seed."""

    mean: float
    low: float
    high: float
    seeds: int
    byte_ratio: float | None
    mark: str = ""  # of its runs

    def __str__(self) -> str:
        return _marked(f"{self.mean:.1f} ({self.low:.1f}-{self.high:.1f})", self.mark)


def grid(scored: Sequence[Scored]) -> tuple[dict[str, Cell], dict[str, dict[float, Cell]]]:
    """Whole checkpoints by name, and label -> ratio -> cell; a label has only the settings that tell methods apart."""
    whole, groups = defaultdict(list), defaultdict(list)
    for one in scored:
        if one.method is None or one.ratio is None:  # an SVD delta has no ratio
            whole[_marked(one.model, one.mark)].append(one)
        else:
            groups[one.method, one.settings, one.ratio, one.mark].append(one)
    variants = defaultdict(set)
    for method, settings, _, _ in groups:
        variants[method].add(settings)
    rows: dict[str, dict[float, Cell]] = defaultdict(dict)
    for (method, settings, ratio, mark), runs in sorted(groups.items(), key=lambda item: (item[0][0], item[0][2])):
        rows[_marked(_label(method, settings, variants[method]), mark)][ratio] = cell(runs)
    return {name: cell(runs) for name, runs in sorted(whole.items())}, dict(rows)


def cell(runs: Sequence[Scored]) -> Cell:
    """Mean over runs and a 95 % interval from both sources of chance: which items were asked, which seed was drawn.

    The variances of the item means over n and of the run means over their number are added (what is left over counts
    in both, so the interval errs on the wide side); Wilson's interval at the sample size with that variance follows.
    InputError for runs that were scored by different rules.
    """
    marks = {one.mark for one in runs}
    if len(marks) > 1:
        raise InputError(
            f"{runs[0].model}, {runs[0].benchmark}: runs of one cell were scored by different rules "
            f"({', '.join(sorted(mark or PAPER for mark in marks))}); score them alike with --rescore --scoring"
        )
    scores, n = [one.score for one in runs], len(runs[0].correct)
    other = next((one for one in runs if len(one.correct) != n), None)
    if other is not None:
        raise InputError(
            f"{runs[0].benchmark}: runs of {runs[0].model} and {other.model} belong to one cell, but have {n} and "
            f"{len(other.correct)} items; evaluate them on the same items, or keep them in two folders"
        )
    mean = sum(scores) / len(scores)
    share = mean / 100
    by_item = [sum(marks) / len(runs) for marks in zip(*(one.correct for one in runs), strict=True)]
    variance = _variance(by_item) / max(n, 1) + _variance([score / 100 for score in scores]) / len(runs)
    size = share * (1 - share) / variance if variance > 0 else n
    low, high = wilson_interval(share * size, size)
    ratios = [one.byte_ratio for one in runs if one.byte_ratio is not None]
    return Cell(mean, low, high, len(runs), sum(ratios) / len(ratios) if ratios else None, marks.pop())


def average(cells: Sequence[Cell]) -> Cell:
    """The mean over benchmarks; their errors are independent, so that the half-widths add up in squares."""
    mean = sum(one.mean for one in cells) / len(cells)
    half = math.sqrt(math.fsum(((one.high - one.low) / 2) ** 2 for one in cells)) / len(cells)
    mark = ", ".join(dict.fromkeys(one.mark for one in cells if one.mark))
    return Cell(mean, max(0.0, mean - half), min(100.0, mean + half), min(one.seeds for one in cells), None, mark)


def _marked(name: str, mark: str) -> str:
    return f"{name} [{mark}]" if mark else name


def _label(method: str, settings: tuple[tuple[str, str], ...], variants: set) -> str:
    differing = {key for variant in variants for key, value in set(variant) ^ set(settings)}
    named = ", ".join(f"{key}={value}" for key, value in settings if key in differing)
    return f"{method} ({named})" if named else method


def _variance(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
