r"""Answers found in completions of GSM8K and MATH, and whether they are right. Pure functions.

scoring="paper" is the rule that the paper describes, with what it leaves open decided here; scoring="release" has the
outcome of the authors' code. The differences:

GSM8K  The release looks for "the answer is" but splits at "the answer is:", so without the colon it takes the first
       number of the whole completion; it reads 1,234,567 as 1,234, and 1/0 as 1. Here the colon is optional, commas
       between groups of three digits belong to the number, \frac{a}{b} is a fraction, and a/0 is no number.
MATH   The release wants exactly "The answer is: "; here the space after the colon may be missing or a line break. An
       empty answer is none, and an answer also ends at an end token, an empty line or the next sentence. Equality here
       also ignores $...$, **...**, \boxed{...}, units, what is counted and thousands separators, knows Unicode's signs,
       and compares plain numbers exactly (0.25 = \frac{1}{4}, alone or as elements of a tuple); the release compares
       texts. Neither reorders lists, simplifies expressions or reads \boxed{...} as an answer by itself.

scoring="math_verify" is neither: eval/scoring/packaged.py asks the package math-verify.
"""

import math
import re
from fractions import Fraction

from eval.scoring.ends import END_TOKEN
from eval.scoring.latex import (
    DASHES,
    elements,
    fraction_form,
    joined_thousands,
    last_boxed,
    normal_form,
    rational,
    release_form,
)

GROUPED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
VALUE = rf"(?:{GROUPED}(?:\.[0-9]+)?|\.[0-9]+)"
FRACTION = rf"\\[dt]?frac\{{({VALUE})\}}\{{({VALUE})\}}"
FIRST_NUMBER = re.compile(rf"([-+]?)\s?\$?\s?(?:{FRACTION}|({VALUE})(?:\s?/\s?({VALUE}))?)")
SENTENCE = r"(?:[A-Z][a-z']+|I)(?:[ ,]+[a-z'])"  # how the next one begins
ANSWER_END = re.compile(rf"{END_TOKEN}|\.\s*\n|\n\s*\n|(?:\.\s+|\n\s*)(?={SENTENCE})")
LONGEST_ANSWER = 2000  # characters; longer ones are compared as they are
RELEASE_NUMBER = re.compile(r"[\-+]?\d*[\.,/]?\d+")


def gsm8k_answer(text: str, scoring: str = "paper") -> float | None:
    """The number after the last "the answer is" (any case, colon or not), else after "Therefore," or "So,"."""
    if scoring == "release":
        return _release_gsm8k_answer(text)
    found = list(re.finditer(r"the answer is", text, re.IGNORECASE)) or list(re.finditer(r"Therefore,|So,", text))
    return first_number(text[found[-1].end() :]) if found else None


def gsm8k_equal(answer: float | None, gold: float | None) -> bool:
    """Equal after rounding to whole numbers, as all gold answers are."""
    return answer is not None and gold is not None and round(answer) == round(gold)


def gsm8k_gold(solution: str) -> float | None:
    """The number after #### of a GSM8K solution; None when there is none."""
    _, marker, answer = solution.rpartition("####")
    return first_number(answer) if marker else None


def first_number(text: str) -> float | None:
    r"""The first number of a text: 1,234.5   -7   $20   3/4   \frac{3}{4}; None when there is none."""
    text = joined_thousands(text.replace("{,}", ",").translate(DASHES)).replace(r"\$", "$")
    found = FIRST_NUMBER.search(text)
    if not found:
        return None
    sign, *parts = (part and part.replace(",", "") for part in found.groups())
    numerator, denominator = (parts[0], parts[1]) if parts[0] else (parts[2], parts[3])
    return _quotient(("-" if sign == "-" else "") + numerator, denominator)


def math_answer(text: str, scoring: str = "paper") -> str | None:
    r"""The text after the last "The answer is: " up to its end, which the release sees in ".\n" alone."""
    _, marker, tail = text.rpartition("The answer is: " if scoring == "release" else "The answer is:")
    if not marker:
        return None
    if scoring == "release":
        return tail.split(".\n")[0].strip().removesuffix(".").strip()
    tail = tail.replace("\r\n", "\n").strip()
    return ANSWER_END.split(tail, maxsplit=1)[0].strip().removesuffix(".").strip() or None


def math_equal(a: str | None, b: str | None, scoring: str = "paper") -> bool:
    """Whether two LaTeX answers are the same once notation is normalised; None equals nothing."""
    if a is None or b is None:
        return False
    if scoring == "release":
        try:
            return release_form(a) == release_form(b)
        except ValueError:
            return a == b
    if max(len(a), len(b)) > LONGEST_ANSWER:
        return a.strip() == b.strip()
    return _same(normal_form(a), normal_form(b))


def math_gold(solution: str) -> str | None:
    r"""The content of the last \boxed{...} of a MATH solution."""
    return last_boxed(solution)


def _same(a: str, b: str) -> bool:
    """Equal texts, equal numbers, or tuples, lists and matrices that are equal element by element."""
    a, b = fraction_form(a), fraction_form(b)
    if a == b:
        return True
    x, y = rational(a), rational(b)
    if x is not None or y is not None:
        return x == y
    left, right = elements(a), elements(b)
    if left is None or right is None or left[1] != right[1]:
        return False
    return all(_same(p, q) for p, q in zip(left[0], right[0], strict=True))


def _quotient(numerator: str, denominator: str | None) -> float | None:
    try:
        value = float(Fraction(numerator) / Fraction(denominator)) if denominator else float(numerator)
    except (ZeroDivisionError, OverflowError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _release_gsm8k_answer(text: str) -> float | None:
    if "the answer is" in text.lower():
        tail = text.lower().split("the answer is:")[-1]
    elif "Therefore," in text or "So," in text:
        tail = re.split(r"Therefore,|So,", text)[-1]
    else:
        return None
    found = RELEASE_NUMBER.search(tail.strip())
    if not found:
        return None
    numerator, _, denominator = found[0].replace(",", "").partition("/")
    if "/" not in found[0]:
        return _rounded(_quotient(numerator, None))
    if not numerator.lstrip("+-"):
        return None
    return _rounded(_quotient(numerator, None if denominator == "0" else denominator))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(round(value))
