"""GSM8K and MATH scored by the package math-verify: its own extraction and its equality by computer algebra.

Each answer has a process and a limit of its own, because simplifying a power tower takes for ever.
"""

from collections.abc import Sequence

from eval.scoring.programs import computed
from eval.scoring.verdict import Verdict
from impart.errors import InputError

SECONDS = 5.0  # of the processor; an answer takes a few hundredths
PRELOAD = ("math_verify",)


def check_package() -> None:
    """InputError where math-verify is not installed."""
    try:
        import math_verify  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--scoring math_verify needs the package math-verify ({error}): pip install 'math-verify[antlr4-13-2]'"
        ) from error


def verdicts(golds: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[Verdict]:
    """One verdict per gold answer, a number or LaTeX: right where one of its candidates, the first that is read, is it.

    candidates: texts in which math-verify looks for the answer.
    """
    check_package()
    results = computed(
        (read_and_compared,),
        list(zip(golds, candidates, strict=True)),
        timeout_s=SECONDS,
        otherwise=(None, False),
        preload=PRELOAD,
    )
    return [Verdict(found, gold, correct) for gold, (found, correct) in zip(golds, results, strict=True)]


def read_and_compared(gold: str, candidates: Sequence[str]) -> tuple[str | None, bool]:
    """(what math-verify reads in the first candidate in which it reads anything, whether that is the gold answer)."""
    from math_verify import parse, verify

    target = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)
    for candidate in candidates:
        found = parse(candidate, parsing_timeout=None)
        if found:
            return str(found[-1]), bool(verify(target, found, timeout_seconds=None))
    return None, False
