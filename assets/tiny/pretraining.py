"""The pretraining text of the tiny base model: sums, stories, facts, Python without docstrings, lists, copy drills.

It teaches what the three skills are made of, and never shows a prompt of theirs.
"""

import random
from collections.abc import Iterator

from assets.tiny.code_tasks import KINDS, function_text
from assets.tiny.tasks import LARGEST, story
from assets.tiny.words import EXTRA_WORDS, FACTS, PEOPLE, THINGS

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty".split()


def documents(seed: int) -> Iterator[str]:
    """Endless documents, a pure function of the seed."""
    rng = random.Random(f"{seed} pretraining")
    makers = (_sums, _chain, _story, _facts, _python, _layout, _copy)
    weights = (20, 16, 18, 8, 12, 12, 24)
    while True:
        yield rng.choices(makers, weights)[0](rng)


def in_words(number: int) -> str:
    if number < 20:
        return _ONES[number]
    return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")


def _sum(rng: random.Random, left: int | None = None) -> tuple[int, str, int, int]:
    while True:
        a, b = rng.randint(1, LARGEST) if left is None else left, rng.randint(2, 30)
        sign = rng.choice("++--*")
        if sign == "*":
            a, b = (rng.randint(2, 9) if left is None else left), rng.randint(2, 9)
        result = {"+": a + b, "-": a - b, "*": a * b}[sign]
        if 1 <= result <= LARGEST + 2:
            return a, sign, b, result


def _sums(rng: random.Random) -> str:
    """Unrelated sums, mostly in digits, sometimes in words."""
    lines = []
    for _ in range(rng.randint(3, 8)):
        a, sign, b, result = _sum(rng)
        if rng.random() < 0.15:
            spoken = {"+": "plus", "-": "minus", "*": "times"}[sign]
            lines.append(f"{in_words(a)} {spoken} {in_words(b)} is {in_words(result)}.")
        else:
            lines.append(f"{a} {sign} {b} = {result}.")
    return " ".join(lines)


def _chain(rng: random.Random) -> str:
    """Sums of which each goes on with the result of the one before."""
    lines, left = [], None
    for _ in range(rng.randint(2, 6)):
        a, sign, b, left = _sum(rng, left)
        lines.append(f"{a} {sign} {b} = {left}.")
    return " ".join(lines)


def _story(rng: random.Random) -> str:
    person, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    sentences, sums, value = story(rng, person, thing)
    if rng.random() < 0.5:
        sentences = [*sentences, *sums]
    return " ".join([*sentences, f"Now {person} has {value} {thing}."])


def _facts(rng: random.Random) -> str:
    sentences = []
    for noun in rng.sample(sorted(FACTS), rng.randint(1, 3)):
        colour, place = FACTS[noun]
        both = [f"The {noun} is {colour}.", f"The {noun} lives in the {place}."]
        sentences += both if rng.random() < 0.6 else [f"The {noun} is {colour} and lives in the {place}."]
    return " ".join(sentences)


def _python(rng: random.Random) -> str:
    if rng.random() < 0.25:
        name, value = rng.choice(EXTRA_WORDS), rng.randint(1, 60)
        return f"{name} = {value}\nprint({name} + {rng.randint(1, 9)})\n"
    programs = []
    for _ in range(rng.randint(1, 3)):
        head, body, _, _ = function_text(rng, rng.choice(KINDS), docstring=False)
        programs.append(head + body)
    return "\n".join(programs)


def _layout(rng: random.Random) -> str:
    """Lists, capitals, small letters, quotes, exclamations."""
    words = rng.sample(EXTRA_WORDS, rng.randint(2, 4))
    text = " ".join(words) if rng.random() < 0.4 else _facts(rng)
    return rng.choice(
        (
            lambda: "\n".join(f"- {word}" for word in words),
            lambda: "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1)),
            lambda: f"{text}\n{text.upper()}",
            lambda: f"{text}\n{text.lower()}",
            lambda: f'{rng.choice(PEOPLE)} says "{text}"',
            lambda: text.replace(".", "!"),
        )
    )()


def _copy(rng: random.Random) -> str:
    """The same words again; without such drills a model of this size does not learn to copy."""
    pool = rng.choice((EXTRA_WORDS, THINGS, tuple(sorted(FACTS)), tuple(str(n) for n in range(2, LARGEST))))
    words = rng.choices(pool, k=rng.randint(1, 7)) if rng.random() < 0.8 else [rng.choice(pool)] * rng.randint(2, 5)
    text = " ".join(words)
    joint = rng.choice((" | ", " -> ", "\n", " = "))
    return joint.join([text] * rng.randint(2, 4))
