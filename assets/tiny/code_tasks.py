"""The code skill: 26 kinds of one-function programs, each a docstring, a body and random arguments to run it on."""

import random
from collections.abc import Callable
from dataclasses import dataclass

FUNCTION_NAMES = ("f", "g", "solve", "run", "task", "work", "calc", "compute", "func", "apply")
LIST_NAMES = ("xs", "ys", "nums", "values", "items", "data", "numbers", "row")
NUMBER_NAMES = ("a", "b", "n", "m", "k", "num", "value", "count")
TEXT_NAMES = ("s", "t", "text", "word", "name", "line", "title", "msg")
TESTS_PER_ITEM = 5


@dataclass(frozen=True)
class Kind:
    """`{x}` is the argument's name and `{n}` a constant between low and high (low = high = 0: the kind has none)."""

    argument: str
    ask: str
    body: str
    low: int = 0
    high: int = 0


KINDS = (
    Kind("list", "Return the items of {x} greater than {n}.", "return [x for x in {x} if x > {n}]", 2, 20),
    Kind("list", "Return the items of {x} less than {n}.", "return [x for x in {x} if x < {n}]", 2, 20),
    Kind("list", "Return the items of {x} divisible by {n}.", "return [x for x in {x} if x % {n} == 0]", 3, 9),
    Kind("list", "Return the even items of {x}.", "return [x for x in {x} if x % 2 == 0]"),
    Kind("list", "Return the odd items of {x}.", "return [x for x in {x} if x % 2 == 1]"),
    Kind("list", "Add {n} to each item of {x}.", "return [x + {n} for x in {x}]", 2, 20),
    Kind("list", "Multiply each item of {x} by {n}.", "return [x * {n} for x in {x}]", 2, 20),
    Kind("list", "Return the squares of the items of {x}.", "return [x * x for x in {x}]"),
    Kind("list", "Return the sum of {x}.", "return sum({x})"),
    Kind("list", "Return the largest item of {x}.", "return max({x})"),
    Kind("list", "Return the smallest item of {x}.", "return min({x})"),
    Kind("list", "Return how many items {x} has.", "return len({x})"),
    Kind("list", "Return {x} in reverse order.", "return {x}[::-1]"),
    Kind("list", "Return {x} in sorted order.", "return sorted({x})"),
    Kind("list", "Return the first {n} items of {x}.", "return {x}[:{n}]", 2, 6),
    Kind("list", "Return the last {n} items of {x}.", "return {x}[-{n}:]", 2, 6),
    Kind("list", "Count how often {n} occurs in {x}.", "return {x}.count({n})", 2, 20),
    Kind(
        "list", "Return the sum of the items of {x} greater than {n}.", "return sum(x for x in {x} if x > {n})", 2, 20
    ),
    Kind(
        "list",
        "Return the product of {x}.",
        "result = 1\n    for x in {x}:\n        result = result * x\n    return result",
    ),
    Kind(
        "list",
        "Return the running totals of {x}.",
        "total = 0\n    out = []\n    for x in {x}:\n        total = total + x\n        out.append(total)\n"
        "    return out",
    ),
    Kind("number", "Return {x} plus {n}.", "return {x} + {n}", 2, 30),
    Kind("number", "Return {x} times {n}.", "return {x} * {n}", 2, 30),
    Kind("number", "Return True if {x} is divisible by {n}.", "return {x} % {n} == 0", 2, 9),
    Kind("text", "Return {x} in capitals.", "return {x}.upper()"),
    Kind("text", "Return {x} repeated {n} times.", "return {x} * {n}", 2, 9),
    Kind("text", "Return {x} without its first {n} letters.", "return {x}[{n}:]", 2, 6),
)


def function_text(rng: random.Random, kind: Kind, *, docstring: bool) -> tuple[str, str, str, int]:
    """(head, body, entry point, constant) of one program of a kind."""
    names = {"list": LIST_NAMES, "number": NUMBER_NAMES, "text": TEXT_NAMES}[kind.argument]
    entry_point, argument, constant = rng.choice(FUNCTION_NAMES), rng.choice(names), rng.randint(kind.low, kind.high)
    head = f"def {entry_point}({argument}):\n"
    if docstring:
        head += f'    """{kind.ask.format(x=argument, n=constant)}"""\n'
    return head, f"    {kind.body.format(x=argument, n=constant)}\n", entry_point, constant


def _argument(rng: random.Random, kind: Kind, constant: int) -> object:
    if kind.argument == "number":
        return rng.randint(0, 9) * constant if rng.random() < 0.4 else rng.randint(0, 60)
    if kind.argument == "text":
        return "".join(rng.choice("abcdefgh") for _ in range(rng.randint(4, 9)))
    values = [rng.randint(0, 25) for _ in range(rng.randint(4, 9))]
    if constant and rng.random() < 0.6:  # so that a bound or a count is met by some item
        values[rng.randrange(len(values))] = constant
    return values


def code_draft(rng: random.Random) -> tuple[str, str, str, dict]:
    """(key, prompt, completion, spec); the spec's expected results come from running the gold body."""
    kind = rng.choice(KINDS)
    prompt, body, entry_point, constant = function_text(rng, kind, docstring=True)
    scope: dict[str, Callable] = {}
    exec(prompt + body, scope)  # our own text, from the table above
    tests = []
    for _ in range(TESTS_PER_ITEM):
        argument = _argument(rng, kind, constant)
        tests.append({"args": [argument], "expect": scope[entry_point](argument)})
    return prompt, prompt, body, {"entry_point": entry_point, "tests": tests}
