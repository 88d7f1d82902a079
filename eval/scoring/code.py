"""From what a model wrote to the program that is tested: pure functions on text.

`program_of` is the rule that the scores use; `released_program_of` cuts exactly as the authors' code does.
"""

import re
import textwrap

FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n`]*$", re.MULTILINE)
PYTHON_FENCES = ("python", "python3", "py")
MAIN_GUARD = re.compile(r"^if[ \t(]+__name__[ \t]*==[ \t]*(['\"])__main__\1.*", re.MULTILINE | re.DOTALL)
EXAMPLE_USAGE = re.compile(r"^#+[ \t]*example usages?\b.*", re.MULTILINE | re.DOTALL | re.IGNORECASE)
MARKER = "### Response:"


def tabbed(prompt: str) -> str:
    """Every four spaces as one tab, as WizardCoder was trained to read code (inside a line too, as in the release)."""
    return prompt.replace("    ", "\t")


def untabbed(text: str) -> str:
    """Every tab as four spaces again."""
    return text.replace("\t", "    ")


def program_of(completion: str, entry_point: str) -> str:
    """The code of a completion: out of its fence, without main guard and example usage; indentation is kept.

    The result continues the problem's prompt. It is either the body of the function that the prompt began or a whole
    definition, which then replaces the one that the prompt began.
    """
    text = untabbed(completion.replace("\r", "").split(MARKER)[-1])
    code = _fenced(text, entry_point)
    if _defines(code, entry_point) and not re.search(rf"^(async )?def {re.escape(entry_point)}\b", code, re.MULTILINE):
        code = textwrap.dedent(code)  # a whole definition that stood in an indented fence, as in a list
    code = EXAMPLE_USAGE.sub("", MAIN_GUARD.sub("", code))
    return code.rstrip().lstrip("\n")


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
    """The fenced block that defines `entry_point`, else the first in Python, else the first, else all of the text."""
    blocks = fenced_blocks(text)
    python = [code for language, code in blocks if language in PYTHON_FENCES]
    candidates = python or [code for _, code in blocks]
    defining = [code for code in candidates if _defines(code, entry_point)]
    return next(iter([*defining, *candidates]), text)


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every ``` block; one that is never closed reaches to the end of the text."""
    blocks, opened, start = [], None, 0
    for mark in FENCE.finditer(text):
        if opened is None:
            opened, start = mark[1].lower(), mark.end() + 1
        elif not mark[1]:
            blocks.append((opened, text[start : mark.start()]))
            opened = None
    if opened is not None:
        blocks.append((opened, text[start:]))
    return blocks


def _defines(code: str, entry_point: str) -> bool:
    return re.search(rf"^[ \t]*(async )?def {re.escape(entry_point)}\b", code, re.MULTILINE) is not None
