"""Scoring by the sandbox: verdicts on programs, and slow work on single answers that gets a process and a limit."""

import inspect
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from eval.sandbox import Layers, SandboxError, required_layers, run_programs, strongest_layers
from eval.scoring.verdict import Verdict
from impart.errors import InputError

log = logging.getLogger(__name__)

LONGEST_RESULT = 1 << 20  # bytes that `computed` reads back of one answer


def sandbox_layers(weak: bool) -> Layers:
    """What holds generated programs here; InputError where that is not full protection, unless `weak`."""
    try:
        return required_layers(weak)
    except SandboxError as error:
        raise InputError(
            f"{error}; --weak_sandbox runs the programs all the same, on your own risk (eval/sandbox/README.md)"
        ) from error


def verdicts_on(
    codes: Sequence[str], programs: Sequence[str], *, layers: Layers | None = None, **limits: Any
) -> list[Verdict]:
    """One verdict per piece of code, right where its program comes to its last line. `limits`: of `run_programs`."""
    try:
        outcomes = run_programs(programs, layers=layers or sandbox_layers(weak=False), **limits)
    except SandboxError as error:
        raise InputError(f"{error}; the answers are kept, run the same command again") from error
    return [
        Verdict(code, None, outcome.passed, "" if outcome.passed else outcome.detail)
        for code, outcome in zip(codes, outcomes, strict=True)
    ]


def computed(
    functions: Sequence[Callable],
    inputs: Sequence[Sequence[Any]],
    *,
    timeout_s: float,
    otherwise: Any,
    setup: str = "",
    **limits: Any,
) -> list[Any]:
    """The last of `functions` on each of `inputs`, which are its arguments, each in a process of its own.

    The functions come with their source and may call each other and what `setup` imports; arguments and results are
    JSON. `otherwise` stands for the result where there is none within timeout_s seconds of the processor.
    """
    source = "\n".join(["from __future__ import annotations", setup, *map(inspect.getsource, functions), "import json"])
    call = f"print()\nprint(json.dumps({functions[-1].__name__}(*json.loads({{!r}}))))"
    programs = [f"{source}\n{call.format(json.dumps(list(one)))}" for one in inputs]
    try:
        # Nothing of an answer is run here, so the protections may be what they are.
        outcomes = run_programs(
            programs, layers=strongest_layers(), timeout_s=timeout_s, kept_output=LONGEST_RESULT, **limits
        )
    except SandboxError as error:
        raise InputError(f"{error}; the answers are kept, run the same command again") from error
    failures = [one.detail for one in outcomes if not one.passed]
    if failures:
        log.warning(
            "%s gave no result for %d of %d answers, the first: %s",
            functions[-1].__name__,
            len(failures),
            len(outcomes),
            failures[0],
        )
    # Packages may have printed before the last line.
    return [json.loads(one.output.splitlines()[-1]) if one.passed else otherwise for one in outcomes]
