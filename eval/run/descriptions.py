"""What each benchmark says of itself, and the registry that finds it: every script of eval/ with `BENCHMARKS`.

Tables, cost estimates and prompts ask here, so that a benchmark is added by adding its script:

    CAPITALS = Description("capitals", "Capitals", items=50, answer_tokens=8, scoring="the city's name", source=SOURCE)
    BENCHMARKS = (CAPITALS,)
"""

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from eval.run.data import Source
from impart.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PAPER = "paper"  # the scoring that tables take for granted


@dataclass(frozen=True)
class Description:
    """One benchmark. Sizes are those of the whole benchmark, whatever --limit leaves of it."""

    name: str  # in results, plans and pair.yaml: "gsm8k"
    title: str  # in tables and figures: "GSM8K"
    items: int
    answer_tokens: int  # mean length of an answer, for expected costs; 0: items are read and nothing is generated
    scoring: str  # one line: what counts as right, by the paper's rule
    source: Source | None  # where its items are; None: a package or this repository brings them
    template: str | None = None  # the paper's prompt template (eval/run/prompts.py); None: the model's or a package's
    second: Literal["dtype", "template"] = "dtype"  # what may follow MODEL on the command line
    arguments: tuple[str, ...] = ()  # flags and values that choose it within its script: ("--tasks", "math")
    backend: str | None = None  # of planned evaluations, where it is not to depend on what is installed
    also: tuple[str, ...] = ()  # further names under which its result may stand
    needs_key: bool = False  # whether OPENAI_API_KEY or OPENAI_BASE_URL must be set
    scorings: tuple[str, ...] = (PAPER,)  # rules that --scoring chooses from
    validation: tuple[str, ...] | None = None  # flags that choose held-out items; None: they are given as --data FILE
    script: Path = Path()  # filled in by `described`, relative to the repository: eval/gsm8k.py

    def command(
        self,
        models: Sequence[str],
        *,
        dtype: str,
        template: str | None = None,
        results_dir: str | Path,
        held_out: str | Path | None = None,
    ) -> list[str]:
        """The arguments, after the interpreter, that score `models` on this benchmark; see the function `command`."""
        return command([self], models, dtype=dtype, template=template, results_dir=results_dir, held_out=held_out)


def command(
    benchmarks: Sequence[Description],
    models: Sequence[str],
    *,
    dtype: str,
    template: str | None = None,
    results_dir: str | Path,
    held_out: str | Path | None = None,
) -> list[str]:
    """The arguments, after the interpreter, that score `models` on benchmarks of one script in one process.

    template: of the chat models that a benchmark of `second="template"` asks; the others have their own.
    held_out: None for the benchmark's items, else a file of held-out items (empty where the benchmark has its own).
    ValueError for benchmarks or models that one process cannot take; InputError where held-out items are missing.
    """
    first = benchmarks[0]
    same = ("script", "second", "backend", "validation")
    if any(getattr(one, key) != getattr(first, key) for one in benchmarks for key in same):
        raise ValueError(f"{', '.join(one.name for one in benchmarks)} are not asked by one command")
    if not models:
        raise ValueError(f"{first.script} takes one or more models")
    following = [template or "", "--dtype", dtype] if first.second == "template" else [dtype]
    parts = [str(first.script), *models, *(word for word in following if word), *_joint_arguments(benchmarks)]
    parts += ["--backend", first.backend] if first.backend else []
    if held_out is not None and first.validation is not None:
        parts += first.validation
    elif held_out is not None:
        if not str(held_out):
            raise InputError(f"{first.title} has no held-out items of its own; give a file of them")
        parts += ["--data", str(held_out)]
    return [*parts, "--results_dir", str(results_dir)]


def _joint_arguments(benchmarks: Sequence[Description]) -> list[str]:
    """--tasks math and --tasks code as --tasks math,code."""
    joint: dict[str, list[str]] = {}
    for one in benchmarks:
        for flag, value in zip(one.arguments[::2], one.arguments[1::2], strict=True):
            joint.setdefault(flag, []).append(value)
    return [word for flag, values in joint.items() for word in (flag, ",".join(values))]


@functools.cache
def described() -> dict[str, Description]:
    """Every benchmark of eval/, by name and in the order of its scripts' names."""
    found: dict[str, Description] = {}
    for file in sorted((ROOT / "eval").glob("*.py")):
        if file.stem == "__init__":
            continue
        for one in getattr(importlib.import_module(f"eval.{file.stem}"), "BENCHMARKS", ()):
            script = file.relative_to(ROOT)
            if one.name in found:
                raise ValueError(f"{found[one.name].script} and {script} both describe a benchmark {one.name!r}")
            found[one.name] = replace(one, script=script)
    return found


def by_result_name() -> dict[str, Description]:
    """The same by every name under which a result may stand: alpacaeval_plain is AlpacaEval's, too."""
    return {name: one for one in described().values() for name in (one.name, *one.also)}
