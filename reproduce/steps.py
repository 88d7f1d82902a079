"""The steps of a plan: commands as argument lists, what each makes, and in which order they come."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A merged model is evaluated in the step that makes it.
STAGES = ("svd", "information", "sparsify", "quantize", "evaluate", "merge")

DRAWN = ""  # label of what is only drawn, as a line of the figure

Command = tuple[str, ...]  # a script of the suite and its arguments


@dataclass(frozen=True)
class Wanted:
    """What holds for a whole table."""

    runs: Path
    seeds: tuple[int, ...]
    split: str = "test"
    held_out: str | None = None  # file or folder of held-out items, for the split `validation`
    only_first: bool = False  # of a pair's benchmarks
    threads: int = 0
    keep: bool = False
    groups: int = 1  # processes over which the models of one cheap evaluation are spread


@dataclass(frozen=True)
class Step:
    """Commands that run one after another, in a process of their own."""

    stage: str
    pair: str
    detail: str  # what progress lines say of it: what it makes, or asks
    commands: tuple[Command, ...]
    targets: tuple[Path, ...]  # what is there when it is done
    removes: tuple[Path, ...] = ()  # folders that are not needed afterwards
    ratio: float | None = None  # of the delta that it makes
    benchmarks: tuple[str, ...] = ()  # that it asks
    models: int = 1  # that it asks them of
    masked: bool = False  # a merge whose mask needs an SVD of every matrix
    reads: tuple[Path, ...] = ()  # what earlier steps make for it: the folder of an SVD, a file of information


@dataclass(frozen=True)
class Cell:
    """One result of the table: which row and column it belongs to, and the file with the score."""

    row: str
    label: str  # what the table calls the row, or DRAWN
    pair: str
    benchmark: str
    ratio: str
    result: Path

    def line(self) -> str:
        """As eval/tables.py reads it."""
        return "\t".join((self.row, self.pair, self.benchmark, self.ratio, str(self.result), self.label))


def script(*arguments: str) -> Command:
    """A script of the suite with its arguments; the interpreter is the machine's."""
    return arguments


def in_order(steps: Sequence[Step]) -> list[Step]:
    """Stage by stage."""
    return [step for stage in STAGES for step in steps if step.stage == stage]


def pasteable(step: Step, prefix: Sequence[str]) -> list[str]:
    """The step as lines for a shell: quoted, in the order in which they run. `prefix`: launcher and interpreter."""
    lines = [shlex.join((*prefix, *command)) for command in step.commands]
    return [*lines, *(shlex.join(("rm", "-rf", str(folder))) for folder in step.removes)]
