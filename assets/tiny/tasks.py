"""The three skills of the tiny pair: seeded generators of prompts with gold completions, as eval/scoring/tiny.py wants.

Every item has a key that says what is asked, and the hash of the key alone decides whether the item may be used for
training, validation or test. So the three splits are disjoint whatever seed drew them.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from assets.tiny.code_tasks import code_draft
from assets.tiny.words import EXTRA_WORDS, FACTS, PEOPLE, THINGS

SKILLS = ("math", "code", "chat")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Item:
    """One prompt, its gold completion, and the fields by which an answer is checked."""

    skill: str
    key: str
    prompt: str
    completion: str
    spec: dict = field(hash=False)

    def record(self, number: int, split: str) -> dict:
        """The line of the shipped jsonl file. Answers are checked by the spec; the completion is what a loss is of."""
        identity = f"{self.skill}-{split}-{number}"
        return {"id": identity, "prompt": self.prompt, "completion": self.completion, **self.spec}


def split_of(key: str) -> str:
    """test and validation take a tenth of all keys each, training the rest."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def draw(skill: str, split: str, seed: int) -> Iterator[Item]:
    """Endless items of one split, a pure function of its arguments."""
    draft = {"math": math_draft, "code": code_draft, "chat": chat_draft}[skill]
    rng = random.Random(f"{seed} {skill} {split}")
    while True:
        key, prompt, completion, spec = draft(rng)
        if split_of(key) == split:
            yield Item(skill, key, prompt, completion, spec)


def held_out(skill: str, split: str, count: int, seed: int = 0) -> list[Item]:
    """The first `count` items of a split with different keys."""
    items: dict[str, Item] = {}
    for item in draw(skill, split, seed):
        items.setdefault(item.key, item)
        if len(items) == count:
            return list(items.values())
    raise AssertionError("draw is endless")


# --- math -------------------------------------------------------------------------------------------------------------

MORE = ("buys", "finds", "gets", "wins", "makes")
FEWER = ("sells", "loses", "breaks", "throws away", "uses up")
LARGEST = 79


def story(rng: random.Random, person: str, thing: str) -> tuple[list[str], list[str], int]:
    """A story of one to three sums: its sentences, its sums as text, and the number at its end."""
    steps = rng.randint(1, 3)
    while True:
        sentences, sums, value = _opening(rng, person, thing)
        while len(sums) < steps and 1 <= value <= LARGEST:
            sign, verbs, amount = rng.choice((("+", MORE, rng.randint(2, 30)), ("-", FEWER, rng.randint(2, 30))))
            result = value + amount if sign == "+" else value - amount
            sentences.append(f"{person} {rng.choice(verbs)} {amount} {thing}.")
            sums.append(f"{value} {sign} {amount} = {result}.")
            value = result
        if 1 <= value <= LARGEST:
            return sentences, sums, value


def _opening(rng: random.Random, person: str, thing: str) -> tuple[list[str], list[str], int]:
    kind = rng.choice(("plain", "boxes", "twice"))
    if kind == "plain":
        value = rng.randint(3, 50)
        return [f"{person} has {value} {thing}."], [], value
    if kind == "boxes":
        boxes, each = rng.randint(2, 9), rng.randint(2, 9)
        holder = rng.choice(("box", "bag", "jar"))
        plural = {"box": "boxes", "bag": "bags", "jar": "jars"}[holder]
        opening = [f"{person} has {boxes} {plural}.", f"Each {holder} has {each} {thing}."]
        return opening, [f"{boxes} * {each} = {boxes * each}."], boxes * each
    first, second = rng.randint(2, 40), rng.randint(2, 30)
    opening = [f"{person} has {first} old {thing} and {second} new {thing}."]
    return opening, [f"{first} + {second} = {first + second}."], first + second


def math_draft(rng: random.Random) -> tuple[str, str, str, dict]:
    person, thing = rng.choice(PEOPLE), rng.choice(THINGS)
    sentences, sums, value = story(rng, person, thing)
    prompt = f"Question: {' '.join(sentences)} How many {thing} does {person} have now?\nAnswer:"
    # The key is the arithmetic alone: the same sums with another name are the same item.
    return " ".join(sums), prompt, f" {' '.join(sums)} The answer is: {value}", {"answer": value}


# --- chat -------------------------------------------------------------------------------------------------------------


def chat_draft(rng: random.Random) -> tuple[str, str, str, dict]:
    draft = rng.choice((_repeat, _listing, _about, _about, _about, _about, _about, _about))
    request, completion, checks = draft(rng)
    return request, f"Instruction: {request}\nResponse:", f" {completion}", {"checks": checks}


def _check(kind: str, value: object = None) -> dict:
    return {"kind": kind} if value is None else {"kind": kind, "value": value}


def _repeat(rng: random.Random) -> tuple[str, str, list[dict]]:
    word, times = rng.choice(EXTRA_WORDS), rng.randint(2, 5)
    checks = [_check("repeat", [word, times])]
    request, text = f"Say the word {word} {times} times.", " ".join([word] * times)
    return _dressed(rng, request, text, checks)


def _listing(rng: random.Random) -> tuple[str, str, list[dict]]:
    words = rng.sample(EXTRA_WORDS, rng.randint(2, 4))
    checks = [_check("include", word) for word in words]
    names = ", ".join(words[:-1]) + f" and {words[-1]}"
    if rng.random() < 0.5:
        checks.append(_check("bullets", len(words)))
        request, text = f"Make a list of {names}. Use bullets.", "\n".join(f"- {word}" for word in words)
    else:
        checks.append(_check("numbered", len(words)))
        request = f"Make a list of {names}. Use numbers."
        text = "\n".join(f"{number}. {word}" for number, word in enumerate(words, 1))
    return _dressed(rng, request, text, checks, quote=False)


def _about(rng: random.Random) -> tuple[str, str, list[dict]]:
    """Facts about a noun under one to three formal demands."""
    noun = rng.choice(sorted(FACTS))
    colour, place = FACTS[noun]
    request, checks = f"Tell me about the {noun}.", [_check("include", noun)]
    facts = [f"The {noun} is {colour}.", f"The {noun} lives in the {place}."]
    style, contents = rng.choice(("colour", "place", "one", "lines", "both")), (colour, place)
    if style in ("colour", "place"):
        word, request = {
            "colour": (colour, f"What colour is the {noun}?"),
            "place": (place, f"Where does the {noun} live?"),
        }[style]
        facts, contents = [facts[style == "place"]], (word,)
    elif style == "one":
        facts = [f"The {noun} is {colour} and lives in the {place}."]
        request += " Use one sentence."
        checks.append(_check("sentences", 1))
    elif style == "lines":
        request += " Use two lines."
        checks.append(_check("lines", 2))
    else:
        request += " Use two sentences."
        checks.append(_check("sentences", 2))
    checks += [_check("include", word) for word in contents]
    counted = style in ("one", "both")
    joint = "\n" if style == "lines" else " "
    demands = rng.sample(("start", "end", "avoid", "mark"), rng.choice((0, 1, 1)))
    for demand in demands:
        word = rng.choice(EXTRA_WORDS)
        if demand == "start":
            request += f" Start with the word {word}."
            facts[0] = f"{word.capitalize()}, the" + facts[0].removeprefix("The")
            checks.append(_check("starts_with", word))
        elif demand == "end":
            request += f" End with the word {word}."
            facts[-1] = facts[-1].removesuffix(".") + f" {word}."
            checks.append(_check("ends_with", word))
        elif demand == "mark":
            request += " Be excited."
            facts = [fact.removesuffix(".") + "!" for fact in facts]
            checks.append(_check("ends_with_mark", "!"))
        elif not counted and style != "lines":
            request += " Do not use the word the."
            facts = [re.sub(r"\b[Tt]he ", "", fact).capitalize() for fact in facts]
            checks.append(_check("exclude", "the"))
    return _dressed(rng, request, joint.join(facts), checks, must=not demands)


def _dressed(
    rng: random.Random, request: str, text: str, checks: list[dict], *, quote: bool = True, must: bool = False
) -> tuple[str, str, list[dict]]:
    """Adds capitals, small letters or quotes, always when `must`, so that no request is met by plain facts."""
    dress = rng.choice(("upper", "lower", "quote") if must else ("upper", "lower", "quote", "none", "none"))
    if dress == "upper":
        return request + " Use all capitals.", text.upper(), [*checks, _check("uppercase")]
    if dress == "lower":
        return request + " Use small letters.", text.lower(), [*checks, _check("lowercase")]
    if dress == "quote" and quote:
        return request + " Put it in quotes.", f'"{text}"', [*checks, _check("quoted")]
    return request, text, checks


def jsonl(items: list[Item], split: str) -> str:
    """The text of a shipped data file."""
    return "".join(json.dumps(item.record(number, split)) + "\n" for number, item in enumerate(items))
