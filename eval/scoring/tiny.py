"""The tiny pair's three skills: which answers are right."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.sandbox import Layers
from eval.scoring.programs import verdicts_on
from eval.scoring.verdict import Verdict

SECONDS = 10.0  # per program, which takes milliseconds unless it never ends: room for a machine that is busy


def score_math(items: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Verdict]:
    """The number after the last "The answer is:" of each completion against the item's."""
    answers = [math_answer(text) for text in texts]
    return [
        Verdict(answer, item["answer"], answer == item["answer"]) for item, answer in zip(items, answers, strict=True)
    ]


def math_answer(completion: str) -> int | None:
    """The number after the last "The answer is:"; None without one, or where it has more than nine digits."""
    numbers = re.findall(r"The answer is: ?(-?[0-9]{1,9})(?![0-9])", completion)
    return int(numbers[-1]) if numbers else None


def score_code(
    items: Sequence[Mapping[str, Any]], texts: Sequence[str], timeout_s: float = SECONDS, layers: Layers | None = None
) -> list[Verdict]:
    """Each completed function, run in the sandbox on every argument list of its item."""
    programs = [program(item, text) for item, text in zip(items, texts, strict=True)]
    return verdicts_on(texts, programs, layers=layers, timeout_s=timeout_s)


def program(item: Mapping[str, Any], completion: str) -> str:
    """The function and its tests as one program; results are compared as JSON, so that 1 is not True."""
    return (
        f"{item['prompt']}{completion}\n\n"
        f"import json\n"
        f"for case in json.loads({json.dumps(json.dumps(item['tests']))}):\n"
        f"    result = json.dumps({item['entry_point']}(*case['args']))\n"
        f"    assert result == json.dumps(case['expect']), f\"{{case['args']}}: {{result}}\"\n"
    )


def score_chat(items: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[Verdict]:
    """Right where all formal demands of the item hold; `extracted` lists those that do not."""
    failed = [
        [check for check in item["checks"] if not holds(check, text)] for item, text in zip(items, texts, strict=True)
    ]
    return [Verdict(failures, [], not failures) for failures in failed]


def holds(check: Mapping[str, Any], completion: str) -> bool:
    """Whether an answer meets one formal demand; assets/tiny/README.md says the demands in words."""
    text = completion.strip()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return CHECKS[check["kind"]](text, lines, re.findall(r"[a-z0-9]+", text.lower()), check.get("value"))


# kind -> (text, its non-empty lines, its words in lower case, the check's value) -> whether the demand is met
CHECKS: dict[str, Callable[[str, list[str], list[str], Any], bool]] = {
    "uppercase": lambda text, lines, words, value: text.isupper(),
    "lowercase": lambda text, lines, words, value: text.islower(),
    "quoted": lambda text, lines, words, value: bool(re.fullmatch(r'"[^"]+"', text)),
    "starts_with": lambda text, lines, words, value: words[:1] == [value],
    "ends_with": lambda text, lines, words, value: words[-1:] == [value],
    "ends_with_mark": lambda text, lines, words, value: text.removesuffix('"').endswith(value),
    "include": lambda text, lines, words, value: value in words,
    "exclude": lambda text, lines, words, value: bool(words) and value not in words,
    "repeat": lambda text, lines, words, value: words == [value[0]] * value[1],
    "lines": lambda text, lines, words, value: len(lines) == value,
    "sentences": lambda text, lines, words, value: len(re.findall(r"[.!?]+", text)) == value,
    "bullets": lambda text, lines, words, value: len(lines) == value and all(re.match(r"- \S", line) for line in lines),
    "numbered": lambda text, lines, words, value: (
        len(lines) == value and all(re.match(rf"{number}\. \S", line) for number, line in enumerate(lines, start=1))
    ),
}
SCORERS = {"math": score_math, "code": score_code, "chat": score_chat}
