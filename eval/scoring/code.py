"""From what a model wrote to the program that is tested: pure functions on text.

`program_of` is the rule that the scores use; `released_program_of` cuts exactly as the authors' code does.
"""

import re
import textwrap

from eval.scoring.ends import END_TOKEN

FENCE = re.compile(r"`{3,}|^[ \t]*~{3,}", re.MULTILINE)
LANGUAGE = re.compile(r"[ \t]*([\w+-]*)[ \t]*$")  # all that may follow a fence that opens behind prose
PYTHON_FENCES = ("python", "python3", "py")
MAIN_GUARD = re.compile(r"^if[ \t(]+__name__[ \t]*==[ \t]*(['\"])__main__\1.*", re.MULTILINE | re.DOTALL)
EXAMPLE_USAGE = re.compile(r"^#+[ \t]*example usages?\b.*", re.MULTILINE | re.DOTALL | re.IGNORECASE)
MARKER = "### Response:"
CODE_START = re.compile(r"^(?:from|import|def|class|async def|@)\b", re.MULTILINE)


def tabbed(prompt: str) -> str:
    """Every four spaces as one tab, as WizardCoder was trained to read code (inside a line too, as in the release)."""
    return prompt.replace("    ", "\t")


def untabbed(text: str) -> str:
    """Every tab as four spaces again."""
    return text.replace("\t", "    ")


def program_of(completion: str, entry_point: str) -> str:
    """The code of a completion: out of its fence, without main guard and example usage; indentation is kept.

    The result continues the problem's prompt. It is either the body of the function that the prompt began or a whole
    definition, which then replaces the one that the prompt began. Where only the authors' cuts find a whole definition,
    theirs is taken.
    """
    text = untabbed(_plain(completion).split(MARKER)[-1])
    code = _without_prose(_trimmed(_fenced(text, entry_point)), entry_point)
    if code.startswith(" ") and is_whole(dedented := textwrap.dedent(code), entry_point):
        return dedented  # a whole definition that stood in an indented fence, as in a list
    if is_whole(code, entry_point):
        return code
    theirs, start = _trimmed(released_program_of(completion)), CODE_START.search(code)
    later = _without_prose(code[start.start() :], entry_point) if start else ""  # behind a sentence without a fence
    return next((one for one in (theirs, later) if is_whole(one, entry_point)), code)


def is_whole(code: str, entry_point: str) -> bool:
    """Whether a text is a program that defines the function; not so a body with an inner function of that name."""
    if not _defines(code, entry_point, indented=False):
        return False
    try:
        compile(code, "<completion>", "exec", dont_inherit=True)  # `return` outside of a function is an error here
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _plain(completion: str) -> str:
    """Without an end token and what follows it, carriage returns, a byte-order mark and spaces that do not break."""
    text = re.split(END_TOKEN, completion.replace("\r", "").removeprefix("\ufeff"), maxsplit=1)[0]
    return re.sub(r"^[ \u00a0]+", lambda found: " " * len(found[0]), text, flags=re.MULTILINE)


def _without_prose(code: str, entry_point: str) -> str:
    """A definition or a body without the last paragraphs, where only these keep it from being Python."""
    paragraphs = code.split("\n\n")
    for kept in range(len(paragraphs), 0, -1):
        shorter = "\n\n".join(paragraphs[:kept])
        if is_whole(shorter, entry_point) or shorter.startswith(" ") and is_whole(f"def _():\n{shorter}", "_"):
            return shorter
    return code


def _trimmed(code: str) -> str:
    return EXAMPLE_USAGE.sub("", MAIN_GUARD.sub("", code)).rstrip().lstrip("\n")


def released_program_of(completion: str) -> str:
    """The authors' cuts, slips included: a body loses its first indentation, a guard in single quotes stays."""
    text = untabbed(completion.split(MARKER)[-1]).replace("\r", "").strip()
    if "```python" in text:
        text = text[text.index("```python") :].strip().replace("```python", "")
        if "```" in text:
            text = text[: text.index("```")].strip()
    if '__name__ == "__main__"' in text and 'if __name__ == "__main__":' in text:
        text = text[: text.index('if __name__ == "__main__":')].strip()
    if "# Example usage" in text:
        text = text[: text.index("# Example usage")].strip()
    for opening in ("The solution is:", "The answer is:"):  # answers in the style of Code Alpaca
        if opening in text:
            text = text[text.index(opening) :].strip().replace(opening, "")
            text = text.split("\n\nThe answer is:")[0].strip()
    return text


def _fenced(text: str, entry_point: str) -> str:
    """The fenced block that defines `entry_point`, else what stands before all fences if that does or is indented.

    Else the first block in Python, else the first, else all of the text.
    """
    blocks = fenced_blocks(text)
    if not blocks:
        return text
    python = [code for language, code in blocks if language in PYTHON_FENCES]
    candidates = python or [code for _, code in blocks]
    defining = [code for code in candidates if _defines(code, entry_point)]
    before = text[: FENCE.search(text).start()]
    if not defining and (_defines(before, entry_point) or before.lstrip("\n").startswith(" ")):
        return before
    whole = [code for code in defining if is_whole(code, entry_point)]
    return [*whole, *defining, *candidates][0]


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block; one that is never closed reaches to the end of the text.

    A fence has three backticks or more, or tildes at the start of a line, and is closed by one of at least its length.
    It may open at the end of a line of prose, and close at the end of a line of code or before more text.
    """
    blocks: list[tuple[str, str]] = []
    opened: tuple[str, str] | None = None  # (fence, language)
    start = 0
    for mark in FENCE.finditer(text):
        fence, line_start = mark[0].strip(), text.rfind("\n", 0, mark.start()) + 1
        line_end = text.find("\n", mark.end()) % (len(text) + 1)  # -1, of a last line, becomes its end
        before, after = text[line_start : mark.start()], text[mark.end() : line_end]
        language = LANGUAGE.match(after)
        if opened is None:
            inline = fence in after or before.count(fence) % 2 == 1  # ```like this```
            if not inline and (language or not before.strip()):
                opened, start = (fence, (after.split() or [""])[0].lower()), line_end + 1
        elif fence.startswith(opened[0]) and not _inside_text(before):
            blocks.append((opened[1], text[start : mark.start()]))
            opened = None
            if not before.strip() and language and language[1].lower() in PYTHON_FENCES:
                opened, start = (fence, language[1].lower()), line_end + 1  # the last one was left open
    if opened is not None:
        blocks.append((opened[1], text[start:]))
    return blocks


def _inside_text(before: str) -> bool:
    """Whether a line of code has a quotation open at its end, so that a fence behind it belongs to the code."""
    return before.count('"') % 2 == 1 or before.count("'") % 2 == 1


def _defines(code: str, entry_point: str, indented: bool = True) -> bool:
    space = "[ \t]*" if indented else ""
    return re.search(rf"^{space}(async )?def {re.escape(entry_point)}\b", code, re.MULTILINE) is not None
