"""LaTeX answers of the MATH benchmark in a form in which equal ones compare equal. Pure text; nothing is evaluated.

`normal_form` is this project's rule; `release_form` has the same outcome as the authors' evaluation on an answer.
"""

import re
from fractions import Fraction

WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)"), ("**", "**"), ("__", "__"), ("`", "`"))
TEXT_COMMAND = r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf)|mbox|operatorname)\s*\{([^{}]*)\}"
UNIT_WORDS = (
    "(?:square |cubic |sq\\.? )?(?:mm|cm|km|m|in|inch(?:es)?|f(?:oo|ee)?t|yards?|miles?|meters?|centimeters?|"
    "units?|degrees?|dollars?|cents?|percent|seconds?|minutes?|hours?|days?|weeks?|years?|mph|k?g|grams?|"
    "pounds?|liters?|gallons?)"
)
SYNONYMS = {
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\leq": r"\le",
    r"\geq": r"\ge",
    r"\neq": r"\ne",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\bigl": "",
    r"\bigr": "",
    r"\displaystyle": "",
    r"\left": "",
    r"\right": "",
    r"\quad": " ",
    r"\qquad": " ",
    r"\degree": "",
}
# Words that make another number of the one before them; after a number any other word is what is counted.
NUMBER_WORDS = frozenset(
    "dozen dozens hundred hundreds thousand thousands million millions billion billions trillion trillions half halves "
    "third thirds fourth fourths quarter quarters fifth fifths sixth sixths seventh sevenths eighth eighths ninth "
    "ninths tenth tenths hundredth hundredths thousandth thousandths times plus minus over squared cubed factorial "
    "root sqrt log sin cos tan alpha beta gamma theta phi infinity mod divided choose per more less not".split()
)
DASHES = dict.fromkeys(map(ord, "−–—‐‑‒﹣－"), "-")
CHARACTERS = DASHES | str.maketrans(
    {"°": "", "~": " ", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "⁄": "/", "²": "^2", "³": "^3"}
    | {"π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "≤": r"\le ", "≥": r"\ge "}
    | {"≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
)
ROOT = re.compile(r"√\s*(?:\{([^{}]*)\}|\(([^()]*)\)|([0-9]+|[A-Za-z]))")
POWER = r"(?:\^(?:[A-Za-z0-9]|\{[^{}]*\}))?"
FACTOR = rf"(?>[0-9]|[A-Za-z]|\\sqrt(?:\[[0-9]\])?\{{[^{{}}]*\}}|\\(?!frac|sqrt)[A-Za-z]+){POWER}"
SLASH = re.compile(rf"(-?)(?:((?:{FACTOR})++)|\(([^()]*)\))/(?:([0-9]+|{FACTOR})|\(([^()]*)\))")
INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
DECIMAL = rf"(?:{INTEGER}(?:\.[0-9]*)?|\.[0-9]+)"
GAP = "␣"  # for a space between two digits, which are not one number
ROW = "¶"  # for the two backslashes between the rows of a matrix: the second would read as a space command
LONGEST_NUMBER = 100  # characters; what is longer is no answer, and Python refuses to read more than 4300 digits


def last_boxed(solution: str) -> str | None:
    r"""The content of the last \boxed{...} or \fbox{...} of a solution; None when there is none or it never closes."""
    start = max(
        solution.rfind(command) + len(command) if command in solution else -1 for command in (r"\boxed", r"\fbox")
    )
    return braced(solution[start:].lstrip()) if start >= 0 else None


def braced(text: str) -> str | None:
    """What stands between the brace that `text` starts with and the one that closes it; None when there is none."""
    depth = 0
    for position, character in enumerate(text):
        if character in "{}" and text[position - 1 : position] != "\\":
            depth += 1 if character == "{" else -1
        if depth == 0:
            return text[1:position] if position else None
    return None


def normal_form(answer: str) -> str:
    """The answer without what does not change it: spacing, delimiters, units, notation variants."""
    text = unwrapped(without_boxes(joined_thousands(answer).translate(CHARACTERS))).replace("\\\\", ROW)
    text = ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2] or found[3]}}}", text)
    text = text.replace("{,}", ",").replace(r"\!", "")
    text = re.sub(r"\\[,;: ]", " ", text)
    text = re.sub(r"\\[A-Za-z]+", lambda found: SYNONYMS.get(found[0], found[0]), text)
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))", "", text)
    text = re.sub(r"\\?[$%]", "", text)
    text = re.sub(r",?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z])(?:and|or)(?![A-Za-z]))\s*", ",", text)
    text = re.sub(rf"(?<=[0-9A-Za-z}})])\s*{TEXT_COMMAND}(?:\s*\^\s*(?:[0-9]|\{{[0-9]\}}))?\s*$", "", text)
    text = re.sub(rf"^(\s*-?\s*{DECIMAL})\s+{UNIT_WORDS}\.?\s*$", r"\1", text)
    text = _without_counted(text)
    text = re.sub(TEXT_COMMAND, r" \1 ", text)
    text = re.sub(r"^\s*(?:\\[A-Za-z]+|[A-Za-z]{1,2}(?:\([A-Za-z]\))?)\s*(?:=|\\in(?![A-Za-z]))(?=[^=]*$)", "", text)
    text = re.sub(r"\\frac\s*([0-9])\s+([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<![0-9.,/])([0-9]+)\s+([0-9]+)\s?/\s?([0-9]+)(?![0-9.])", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<=[0-9])\s+(?=[0-9])", GAP, text)
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"([\^_])\{([A-Za-z0-9])\}", r"\1\2", text)
    text = with_braces(text)
    text = re.sub(r"(?<![0-9.])\.(?=[0-9])", "0.", text)
    text = re.sub(r"^\(([A-Z])\)$", r"\1", text)  # a choice
    return text[0].lower() + text[1:] if re.fullmatch(r"[A-Z][a-z]{2,}", text) else text  # a word


def joined_thousands(text: str) -> str:
    r"""12\,345 and 12~345 as 12345: the spaces that LaTeX has for groups of three digits."""
    return re.sub(r"(?<=[0-9])(?:\\[,;:! ]|~|\u2009|\u202f)(?=[0-9]{3}(?![0-9]))", "", text)


def fraction_form(text: str) -> str:
    r"""a/b, where the numerator is a product or in parentheses and the denominator one factor, as \frac{a}{b}."""
    if found := SLASH.fullmatch(text):
        text = rf"{found[1]}\frac{{{found[2] or found[3]}}}{{{found[4] or found[5]}}}"
    return re.sub(r"^\\frac\{-([^{}+-]*)\}", r"-\\frac{\1}", text)


def without_boxes(text: str) -> str:
    r"""The content of every \boxed{...} and \fbox{...} in its place."""
    while found := re.search(r"\\(?:boxed|fbox)\s*(?=\{)", text):
        inner = braced(text[found.end() :])
        if inner is None:
            return text
        text = f"{text[: found.start()]} {inner} {text[found.end() + len(inner) + 2 :]}"
    return text


def _without_counted(text: str) -> str:
    """5 apples as 5, but not 5 dozen, and not 3 quarters."""
    found = re.fullmatch(rf"(\s*-?\s*{DECIMAL})\s+((?:[a-z]{{3,}})(?:[ -][a-z]{{2,}}){{0,2}})\.?\s*", text)
    return found[1] if found and not NUMBER_WORDS & set(re.split("[ -]", found[2])) else text


def unwrapped(text: str) -> str:
    r"""Without what stands around the whole answer: $...$, \(...\), **...** and a full stop."""
    while True:
        before, text = text, text.strip().removesuffix(".").strip()
        if text.count("**") == 1:  # the other one stood before the answer
            text = text.removeprefix("**").removesuffix("**").strip()
        for opening, closing in WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if (
                len(text) > len(opening + closing)
                and text == opening + inner + closing
                and opening not in inner.replace(r"\$", "")
            ):
                text = inner
        if text == before:
            return text


def with_braces(text: str) -> str:
    r"""\frac12, \frac1{72}, \frac{1}2 and \sqrt3 with the braces that they leave out. `text` has no spaces."""
    text = re.sub(r"\\sqrt([A-Za-z0-9])", r"\\sqrt{\1}", text)
    pieces = text.split(r"\frac")
    return pieces[0] + "".join(r"\frac" + _two_arguments(piece) for piece in pieces[1:])


def _two_arguments(text: str) -> str:
    arguments = ""
    for _ in range(2):
        inner = braced(text)
        if inner is None and re.match(r"[A-Za-z0-9]", text):
            inner, text = text[0], text[1:]
        elif inner is None:
            break
        else:
            text = text[len(inner) + 2 :]
        arguments += "{" + inner + "}"
    return arguments + text


def rational(text: str) -> Fraction | None:
    r"""The exact value of a number in normal form: 1,000  -0.50  3/4  -\frac{3}{4}  1\frac{1}{2}; else None."""
    if len(text) > LONGEST_NUMBER:
        return None
    text = re.sub(rf"^(-?)({DECIMAL})/({DECIMAL})$", r"\1\\frac{\2}{\3}", text)
    found = re.fullmatch(rf"([+-]?)({DECIMAL})?(?:\\frac\{{(-?{DECIMAL})\}}\{{(-?{DECIMAL})\}})?", text)
    if not found or found.group(2) is None and found.group(3) is None:
        return None
    sign, whole, numerator, denominator = (
        group and group.replace(",", "").removesuffix(".") for group in found.groups()
    )
    value = Fraction(whole) if whole else Fraction(0)
    if numerator:
        if Fraction(denominator) == 0 or whole and ("." in whole or "-" in numerator + denominator):
            return None
        value += Fraction(numerator) / Fraction(denominator)
    return -value if sign == "-" else value


def elements(text: str) -> tuple[list[str], list[str]] | None:
    r"""(elements, everything between and around them) of (a,b), [a,b), a,b or a matrix; None when there is only one."""
    matrix = re.fullmatch(r"(\\begin\{[a-z]+\})(.*)(\\end\{[a-z]+\})", text)
    ends = matrix or re.fullmatch(r"([(\[])(.*)([)\]])", text) or re.fullmatch(r"()(.*)()", text)
    inner, parts, between, depth = ends[2], [""], [ends[1]], 0
    for character in inner:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return None
        if depth == 0 and character in ("&" + ROW if matrix else ","):
            parts.append("")
            between.append(character)
        else:
            parts[-1] += character
    return (parts, [*between, ends[3]]) if len(parts) > 1 else None


def release_form(answer: str) -> str:
    """The authors' normal form. ValueError where their code fails, upon which they compare the bare texts."""
    text = answer.replace("\n", "").replace(r"\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for ignored in (r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$"):
        text = text.replace(ignored, "")
    if text.count(r"\text{ ") > 1:
        raise ValueError("more than one unit")
    text = text.partition(r"\text{ ")[0]
    text = text.replace(r"\%", "").replace(r"\%", "")  # twice, as theirs: the first leaves one of \\%%
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    left, _, right = text.partition("=")
    text = right if text.count("=") == 1 and len(left) <= 2 else text
    if re.search(r"\\sqrt(?:\\sqrt|$)", text):
        raise ValueError("a root of nothing")
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text, flags=re.DOTALL).replace(" ", "")
    text = _release_fractions(text)
    if text == "0.5":
        return r"\frac{1}{2}"
    if text.count("/") == 1:
        a, b = map(int, text.split("/"))  # ValueError for anything but whole numbers
        if text != f"{a}/{b}":
            return text
        return rf"\frac{{{a}}}{{{b}}}"
    return text


def _release_fractions(text: str) -> str:
    pieces = text.split(r"\frac")
    whole = pieces[0]
    for piece in pieces[1:]:
        if not piece:
            raise ValueError("a fraction of nothing")
        if piece[0] != "{":
            if len(piece) < 2:
                return text
            piece = "{" + piece[0] + "}" + (piece[1:] if piece[1] == "{" else "{" + piece[1] + "}" + piece[2:])
        whole += r"\frac" + piece
    return whole
