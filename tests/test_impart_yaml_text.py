"""YAML is a setting or one error line, whatever PyYAML makes of it."""

import pytest

from impart.errors import InputError
from impart.yaml_text import DEEPEST, MOST_NODES, parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{after}: &{after} {{<<: [{', '.join([f'*{before}'] * 40)}]}}\n"
    for before, after in zip("abcd", "bcde", strict=True)
)


@pytest.mark.parametrize(
    "text, words",
    [
        ("2024-02-30", "day is out of range"),
        ("2024-13-45", "month must be in 1..12"),
        ("2024-01-01 99:00:00", "hour must be in 0..23"),
        ("!!int abc", "invalid literal for int"),
        ("!!float abc", "could not convert"),
        ("!!bool maybe", "KeyError"),
        ("!!timestamp x", "AttributeError"),
        ("0x_", "invalid literal"),
        ("9" * 5000, "cannot read"),
        ("9" * 400, "beyond 64 bits"),
        ("0x" + "f" * 4000, "beyond 64 bits"),
        ("[" * 3000 + "]" * 3000, f"more than {DEEPEST} levels"),
        ("[" * 3000, "levels"),
        ("{a: " * 60 + "1" + "}" * 60, "levels"),
        ("- " * 200 + "a", "levels"),
        (BOMB, f"more than {MOST_NODES} values"),
        (MERGED, f"more than {MOST_NODES} values"),
        ("&a [*a]", "holds itself"),
        ("a: &a {b: {c: *a}}", "holds itself"),
        ('"a\\0b"', "NUL"),
        ('"\\ud800"', "half a character"),
        ('{"a\\0b": 1}', "NUL"),
        ("a: 1\na: 2", "'a' stands twice"),
        ("? [a]\n: 1", "not valid YAML"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("!x y", "not valid YAML"),
        ("*a", "not valid YAML"),
        ("a\x00b", "not valid YAML"),
        ("a: [", "not valid YAML"),
        ("a\n---\nb", "not valid YAML"),
    ],
)
def test_what_is_no_setting_is_one_line_that_says_where(text, words):
    with pytest.raises(InputError) as refused:
        parse_yaml(text, "config file 'x'")
    message = " ".join(str(refused.value).split())
    assert message.startswith("config file 'x' ") and words in message and len(message) < 1000


@pytest.mark.parametrize(
    "text, value",
    [
        ("", None),
        ("a: &a {b: 1}\nc: {<<: *a, d: [*a, *a]}", {"a": {"b": 1}, "c": {"b": 1, "d": [{"b": 1}] * 2}}),
        (str(2**63 - 1), 2**63 - 1),
        ("-0x10", -16),
        ("é\u2028ü", "é\u2028ü"),
        ("'\U0001f600'", "\U0001f600"),
        ("[" * DEEPEST + "]" * DEEPEST, [[]]),
    ],
)
def test_what_is_one_is_read(text, value):
    found = parse_yaml(text, "x")
    if value == [[]]:
        for _ in range(DEEPEST - 1):
            (found,) = found
        value = []
    assert found == value
