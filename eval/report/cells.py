"""Cells of tables: the runs of one setting, which differ in their seed, as a mean with its interval. Pure functions."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eval.run.descriptions import PAPER
from eval.run.results import Z95, wilson_interval
from impart.errors import InputError

PERCENT, NATS = "percent", "nats"  # measures: a share that is right, a mean negative log-likelihood
BASE, TUNED = "backbone", "fine_tuned"  # roles of whole models, and their rows in planned tables
DIGITS = {PERCENT: 1, NATS: 4}


@dataclass(frozen=True)
class Scored:
    """One result file: a model on a benchmark, and what each item came to."""

    benchmark: str
    model: str
    method: str | None  # as tables call it; None: a whole checkpoint
    ratio: float | None  # nominal
    settings: tuple[tuple[str, str], ...]
    score: float
    byte_ratio: float | None  # of the linear layers, true
    per_item: tuple[float, ...]  # 1 for right and 0 for wrong, or the item's loss
    mark: str = ""  # what sets the score apart from one by the paper's rule: "scoring: release"
    measure: str = PERCENT
    backend: str = ""  # that answered; empty: not said, as of completions from elsewhere
    dtype: str = ""
    whole: Mapping[str, str] = field(default_factory=dict)  # a delta's base and fine-tuned model -> role

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.per_item)


@dataclass(frozen=True)
class Cell:
    """The runs of one method at one ratio, which differ in their seed."""

    mean: float
    low: float
    high: float
    seeds: int
    byte_ratio: float | None
    mark: str = ""  # of its runs
    measure: str = PERCENT
    n: int = 0  # items of each run
    backend: str = ""
    dtype: str = ""
    by_item: tuple[float, ...] = ()  # means over the runs
    variance_of_runs: float = 0.0  # of the mean, by the runs' own means alone

    def __str__(self) -> str:
        digits = DIGITS[self.measure]
        return _marked(f"{self.mean:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})", self.mark)

    @property
    def merit(self) -> float:
        """Larger is better."""
        return self.mean if self.measure == PERCENT else -self.mean


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
    in both, so the interval errs on the wide side). Of a share follows Wilson's interval at the sample size with that
    variance, of a loss the normal distribution's: for a single run, the interval of its result file. InputError for
    runs that were scored by different rules or under different conditions.
    """
    marks = {one.mark for one in runs}
    if len(marks) > 1:
        raise InputError(
            f"{runs[0].model}, {runs[0].benchmark}: runs of one cell differ "
            f"({'; '.join(sorted(mark or PAPER for mark in marks))}); score them alike with --rescore --scoring, "
            "evaluate them alike, or keep them in two folders"
        )
    scores, n, measure = [one.score for one in runs], len(runs[0].per_item), runs[0].measure
    other = next((one for one in runs if len(one.per_item) != n), None)
    if other is not None:
        raise InputError(
            f"{runs[0].benchmark}: runs of {runs[0].model} and {other.model} belong to one cell, but have {n} and "
            f"{len(other.per_item)} items; evaluate them on the same items, or keep them in two folders"
        )
    mean = sum(scores) / len(scores)
    unit = 100 if measure == PERCENT else 1
    by_item = [sum(marks) / len(runs) for marks in zip(*(one.per_item for one in runs), strict=True)]
    spread = variance_of(by_item) * ((n - 1) / n if measure == PERCENT and n else 1)  # p (1 - p) of a single run
    of_runs = variance_of([score / unit for score in scores]) / len(runs)
    variance = spread / max(n, 1) + of_runs
    if measure == PERCENT:
        share = mean / 100
        size = share * (1 - share) / variance if variance > 0 else n
        low, high = wilson_interval(share * size, size)
    else:
        low, high = mean - Z95 * math.sqrt(variance), mean + Z95 * math.sqrt(variance)
    ratios = [one.byte_ratio for one in runs if one.byte_ratio is not None]
    byte_ratio = sum(ratios) / len(ratios) if ratios else None
    one = runs[0]
    return Cell(
        *(mean, low, high, len(runs), byte_ratio, one.mark, measure, n, one.backend, one.dtype),
        by_item=tuple(by_item),
        variance_of_runs=of_runs,
    )


def same_items(*cells: Cell) -> bool:
    """Whether cells of one benchmark can be compared item by item."""
    return len({len(one.by_item) for one in cells}) == 1


def gain_kept(found: Cell, base: Cell, tuned: Cell) -> Cell:
    """The share of what fine-tuning gained in a loss, in per cent: (base - loss) / (base - fine-tuned).

    All three have the same items, and move together from item to item: the interval is that of a ratio of means
    (Cochran, Sampling Techniques, 3rd ed., section 2.11), whose errors are those of (base - loss) - share (base -
    fine-tuned) by item, and the runs' own variance added.
    """
    gain = base.mean - tuned.mean
    share = (base.mean - found.mean) / gain
    errors = [(b - x) - share * (b - t) for x, b, t in zip(found.by_item, base.by_item, tuned.by_item, strict=True)]
    variance = variance_of(errors) / max(len(errors), 1) + found.variance_of_runs
    half = Z95 * math.sqrt(variance) / abs(gain)
    return Cell(100 * share, 100 * (share - half), 100 * (share + half), found.seeds, found.byte_ratio, found.mark)


def average(cells: Sequence[Cell]) -> Cell:
    """The mean over benchmarks of one measure; errors are independent, so that the half-widths add up in squares."""
    mean = sum(one.mean for one in cells) / len(cells)
    half = math.sqrt(math.fsum(((one.high - one.low) / 2) ** 2 for one in cells)) / len(cells)
    most = 100.0 if cells[0].measure == PERCENT else math.inf
    low, high = max(0.0, mean - half), min(most, mean + half)
    mark = ", ".join(dict.fromkeys(one.mark for one in cells if one.mark))
    return Cell(mean, low, high, min(one.seeds for one in cells), None, mark, cells[0].measure)


def _marked(name: str, mark: str) -> str:
    return f"{name} [{mark}]" if mark else name


def _label(method: str, settings: tuple[tuple[str, str], ...], variants: set) -> str:
    differing = {key for variant in variants for key, value in set(variant) ^ set(settings)}
    named = ", ".join(f"{key}={value}" for key, value in settings if key in differing)
    return f"{method} ({named})" if named else method


def variance_of(values: Sequence[float]) -> float:
    """Of a sample, over n - 1; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
