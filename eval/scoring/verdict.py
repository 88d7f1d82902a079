"""What a scorer says about one completion, and what a program's outcome in the sandbox means for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.sandbox import Outcome


@dataclass(frozen=True)
class Verdict:
    """What a benchmark's scorer says about one completion."""

    extracted: Any  # the answer found in the completion, None when there is none
    gold: Any  # what it is compared with
    correct: bool
    detail: str = ""  # why not, where the scorer knows


def verdicts_on(codes: Sequence[str], outcomes: Sequence[Outcome]) -> list[Verdict]:
    """One verdict per piece of code, right where its program came to its last line."""
    return [
        Verdict(code, None, outcome.passed, "" if outcome.passed else outcome.detail)
        for code, outcome in zip(codes, outcomes, strict=True)
    ]
