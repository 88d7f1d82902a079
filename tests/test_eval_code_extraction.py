"""What is cut out of a completion and what is left as it is."""

import json
import os
import time
from pathlib import Path

import pytest

from eval.scoring.code import fenced_blocks, program_of, released_program_of, tabbed, untabbed

BODY = "    total = 0\n    for x in xs:\n        total += x\n    return total"
WHOLE = f"def add(xs):\n{BODY}"
HELPED = f"from math import fsum\n\n\ndef helper(x):\n    return x\n\n\n{WHOLE}"


@pytest.mark.parametrize(
    "text", ["def f(x):\n    if x:\n        return 1\n    return 0\n", "", "a b  c   d", "x\n\n    \n"]
)
def test_tabs_and_back(text):
    assert untabbed(tabbed(text)) == text
    assert "    " not in tabbed(text)


def test_tabs_are_those_of_indentation_and_of_tables():
    assert tabbed("        return 1") == "\t\treturn 1"
    assert tabbed("   three") == "   three"
    assert tabbed("     five") == "\t five"
    assert tabbed("a    b") == "a\tb"


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        (BODY, BODY),  # a body keeps its first indentation
        (f"\n{BODY}\n\n", BODY),
        (WHOLE, WHOLE),
        (f"```python\n{WHOLE}\n```", WHOLE),
        (f"Here is the script:\n\n```python\n{WHOLE}\n```\nIt adds all items.", WHOLE),
        (f"```python\n{WHOLE}", WHOLE),  # cut off by the token limit
        (f"```Python\n{WHOLE}\n```", WHOLE),
        (f"```py\n{WHOLE}\n```", WHOLE),
        (f"```python3 \n{WHOLE}\n```", WHOLE),
        (f"```\n{WHOLE}\n```", WHOLE),  # no language named
        (f"``` python\n{WHOLE}\n```", WHOLE),
        (f"```python\n{BODY}\n```", BODY),
        (f"```python\n{HELPED}\n```", HELPED),
        (f"```bash\npip install numpy\n```\n```python\n{WHOLE}\n```", WHOLE),
        (f"```\nadd([1])\n```\nand\n```\n{WHOLE}\n```", WHOLE),  # the block that defines the function
        (f"```python\nprint(add([1, 2]))\n```\n```python\n{WHOLE}\n```", WHOLE),
        (f"```python\n{WHOLE}\n```\n```python\ndef add(xs):\n    return 0\n```", WHOLE),  # the first of two
        ("1. Write it:\n   ```python\n" + "".join(f"   {line}\n" for line in WHOLE.split("\n")) + "   ```", WHOLE),
        (f'{WHOLE}\n\nif __name__ == "__main__":\n    print(add([1]))', WHOLE),
        (f"{WHOLE}\n\nif __name__ == '__main__':\n    print(add([1]))\n", WHOLE),
        (f"{WHOLE}\nif __name__=='__main__': add([])", WHOLE),
        (f"{WHOLE}\nif (__name__ == '__main__'):\n    add([])", WHOLE),
        (f'```python\n{WHOLE}\n\nif __name__ == "__main__":\n    add([1])\n```', WHOLE),
        (f"{WHOLE}\n\n# Example usage\nprint(add([1, 2]))", WHOLE),
        (f"{WHOLE}\n\n# Example usage:\nassert add([1]) == 2", WHOLE),
        (f"{WHOLE}\n\n# example usages\nadd(1)", WHOLE),
        (f"{WHOLE}\n\n## Example Usage\nadd(1)", WHOLE),
        (f"```python\n{WHOLE}\n\n# Example usage\nadd(1)\n```\nprose", WHOLE),
        (f'{WHOLE}\n\n# Example usage\nadd(1)\n\nif __name__ == "__main__":\n    add(2)', WHOLE),
        (f"### Instruction: x\n### Response:\n{WHOLE}", WHOLE),
        (WHOLE.replace("    ", "\t"), WHOLE),
        (f"```python\r\n{WHOLE}\r\n```".replace("\n", "\r\n").replace("\r\r", "\r"), WHOLE),
        (f"Here it is:\n```python\n{WHOLE}```", WHOLE),  # the fence closes at the end of the last line
        (f"Code: ```python\n{WHOLE}\n```", WHOLE),  # and opens behind prose
        (f"````python\n{WHOLE}\n````", WHOLE),
        (f"````\n{WHOLE}\n```` done", WHOLE),
        (f"~~~python\n{WHOLE}\n~~~", WHOLE),
        (f"```python\n{WHOLE}\n``` It's right.", WHOLE),
        (f"```python\n{WHOLE}```It adds.", WHOLE),
        (f"```python\n{WHOLE}\n\n```python\nprint(1)\n```", WHOLE),  # the first fence is never closed
        (f"{WHOLE}\n\nExample:\n```python\nadd([1])\n```", WHOLE),  # not fenced, but its example is
        (f"{BODY}\n```\nIt adds.", BODY),  # the fence had been opened by the prompt
        (f"{BODY}```", BODY),
        (f"{BODY}\n\nThis adds.\n\nIt's fine.", BODY),
        (f"{WHOLE}\n\nThis adds.", WHOLE),
        (f"```python {WHOLE}```", WHOLE),  # only the release's cuts find it
        (f"```python\n{WHOLE}, '```', \"```\"\n```", f"{WHOLE}, '```', \"```\""),  # code, not a fence
        (f"Here is the function:\n\n{WHOLE}\n\nThis works.", WHOLE),  # prose without a fence
        (f"{WHOLE}</s>", WHOLE),
        (f"```python\n{WHOLE}\n```<|im_end|>\nmore", WHOLE),
        (f"\ufeff{WHOLE}", WHOLE),
        (WHOLE.replace("    ", "\u00a0" * 4), WHOLE),
        ("", ""),
        ("```python\n```", ""),
        ("```", ""),
        ("I cannot do that.", "I cannot do that."),
    ],
)
def test_the_code_of_a_completion(completion, code):
    assert program_of(completion, "add") == code


@pytest.mark.parametrize(
    "code",
    [
        "    # Example usage\n    return 1",  # an indented comment is part of the body
        "    text = '# Example usage'\n    return text",
        "    if __name__ == '__main__':\n        pass\n    return 1",
        "    return x  # see ```python in the text",
        "async def add(xs):\n    return 0",
        "class A:\n    def add(self):\n        return 1",
    ],
)
def test_what_only_looks_alike_stays(code):
    assert program_of(code, "add") == code


def test_a_nested_helper_does_not_unindent_the_body():
    body = "    def add_one(x):\n        return x + 1\n    return add_one(xs)"
    assert program_of(body, "add") == body
    assert program_of(f"```python\n{body}\n```", "add") == body


@pytest.mark.parametrize("opening", ["", "```python\n"])
def test_an_inner_function_of_the_entry_point_s_name_does_not_unindent_the_body(opening):
    body = "    def add(ys):\n        return sum(ys)\n    return add(xs)"
    assert program_of(opening + body, "add") == body


WRAPPINGS = (
    "```python\n{}\n```",
    "Here it is:\n```python\n{}```",
    "Code: ```python\n{}\n```",
    "````python\n{}\n````",
    "```python\n{}\n``` It's done.",
    "```\n{}\n```",
    "```python\n{}",
    "```bash\npip install x\n```\n\n```python\n{}\n```\nSo:\n```python\nprint(1)\n```",
    "The solution is:\n{}\n\nThe answer is: 3",
    "{}\n\nExample:\n```python\nprint(1)\n```",
)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_reference_of_humaneval_is_found(wrapping):
    """As text; tests/test_eval_humaneval.py runs references."""
    file = Path(os.environ.get("IMPART_DATA", "")) / "humaneval.jsonl"
    if not file.is_file():
        pytest.skip("IMPART_DATA names no folder with humaneval.jsonl")
    for item in map(json.loads, file.read_text().splitlines()):
        reference = untabbed(item["prompt"] + item["canonical_solution"]).strip()
        for text in (reference, reference.replace("\n", "\r\n")):
            assert program_of(wrapping.format(text), item["entry_point"]) == reference, item["task_id"]


@pytest.mark.parametrize(
    "text", ["(" * 5000, "x y\n\n" * 1000, "```" * 5000, "```\n" * 5000, "lambda:" * 5000, "9**" * 2000]
)
def test_a_degenerate_completion_takes_no_time(text):
    begun = time.process_time()
    program_of(f"def f(x):\n    return {text}", "f")
    assert time.process_time() - begun < 3


def test_it_is_idempotent():
    for text in (BODY, WHOLE, HELPED, f"```python\n{WHOLE}\n# Example usage\nadd()\n```"):
        once = program_of(text, "add")
        assert program_of(once, "add") == once


def test_fenced_blocks():
    text = "a\n```python\n1\n```\nb\n```\n2\n```\n```js\n3"
    assert fenced_blocks(text) == [("python", "1\n"), ("", "2\n"), ("js", "3")]
    assert fenced_blocks("no fence, but `code` and ```inline``` marks") == []


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        (f"text ```python\n{WHOLE}\n``` more", WHOLE),
        (f'{WHOLE}\nif __name__ == "__main__":\n    add([])', WHOLE),
        (f"{WHOLE}\n# Example usage\nadd([])", WHOLE),
        (BODY, BODY.lstrip()),  # the slip: the body no longer fits
        (f"{WHOLE}\nif __name__ == '__main__':\n    add([])", f"{WHOLE}\nif __name__ == '__main__':\n    add([])"),
        (f"```\n{WHOLE}\n```", f"```\n{WHOLE}\n```"),  # no language: left in
        (f"The solution is:\n{WHOLE}\n\nThe answer is: 3", WHOLE),
        (f"```python\n{WHOLE}", f"\n{WHOLE}"),
    ],
)
def test_the_released_rule(completion, code):
    assert released_program_of(completion) == code
