"""JSON of a stranger: parsed within bounds, and its values taken out one by one, each with its place in the file."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from impart.errors import InputError

MAX_BYTES = 1 << 28  # of a file; the 280 matrices of a 13B model take 0.2 MB
MAX_FP32 = 3.4e38
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # would reach the terminal
REMEDY = "fetch or make the delta again"


@dataclass(frozen=True)
class Field:
    """A value of a JSON file and the place where it stands, which every refusal names; and what then to do."""

    file: Path
    place: str
    value: Any
    remedy: str = REMEDY

    def refuse(self, expected: str) -> NoReturn:
        raise InputError(f"{self.file}: {self.place or 'it'} is {short(self.value)}, not {expected}; {self.remedy}")

    def __getitem__(self, key: str | int) -> "Field":
        if key not in self.value if isinstance(key, str) else key >= len(self.value):
            raise InputError(f"{self.file}: {self._at(key)} is missing; {self.remedy}")
        return Field(self.file, self._at(key), self.value[key], self.remedy)

    def _at(self, key: str | int) -> str:
        return f"{self.place}.{key}" if self.place else str(key)

    def items(self) -> Iterator[tuple[str, "Field"]]:
        for key in self.mapping().value:
            yield key, self[key]

    def elements(self, count: int | None = None) -> list["Field"]:
        """The fields of a list, of this length where one is given."""
        if not isinstance(self.value, list) or count not in (None, len(self.value)):
            self.refuse("a list" if count is None else f"a list of {count}")
        return [self[index] for index in range(len(self.value))]

    def mapping(self) -> "Field":
        if not isinstance(self.value, dict):
            self.refuse("a JSON object")
        return self

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value or CONTROL.search(self.value):
            self.refuse("a text of printable characters")
        return self.value

    def matching(self, fits: Callable[[str], Any], expected: str) -> str:
        if not fits(self.text()):
            self.refuse(expected)
        return self.value

    def integer(self, low: int | None = None, high: int | None = None) -> int:
        whole = isinstance(self.value, int) and not isinstance(self.value, bool)
        if not whole or (low is not None and self.value < low) or (high is not None and self.value > high):
            above = "" if low is None else f" of at least {low}"
            self.refuse(f"a whole number{above}" + ("" if high is None else f" and at most {high}"))
        return self.value

    def number(self, largest: float = MAX_FP32) -> float:
        if not isinstance(self.value, int | float) or isinstance(self.value, bool) or not abs(self.value) <= largest:
            self.refuse("a finite number" if largest == MAX_FP32 else f"a number of at most {largest:g}")
        return self.value

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return self.value

    def equals(self, expected: Any, reason: str) -> None:
        if self.value != expected:
            self.refuse(f"{expected!r}, {reason}")


def parsed(file: Path, remedy: str = REMEDY) -> Any:
    """JSON of bounded size without duplicate keys, NaN and Infinity, which would mean another thing to each reader."""
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise InputError(f"{file} has {size / 1e6:.0f} MB, more than the {MAX_BYTES / 1e6:.0f} MB that one may have")
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
        json.dumps(content, ensure_ascii=False).encode()  # lone surrogates can neither be printed nor name a file
        return content
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors, numbers too long, brackets too deep
        raise InputError(f"{file} is not valid JSON ({error}); {remedy}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {short(next(key for key in keys if keys.count(key) > 1))} stands twice")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def short(value: Any) -> str:
    """A value as it is printed in an error line."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a very long number"
    return text if len(text) <= 80 else text[:77] + "..."
