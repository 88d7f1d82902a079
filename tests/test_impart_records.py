"""Records with their places: three file formats, and what is said of a broken file."""

import gzip
import json
import logging

import pytest

from impart.errors import InputError
from impart.records import read_records, read_text

RECORDS = [{"text": "a\u2028b"}, {"text": "c\x85d\u2029"}, {"text": "\x0b\x0c\x1c"}]


def lines(records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.part.jsonl"])
def test_every_format_gives_the_same_records(tmp_path, name):
    """Line separators of Unicode are legal inside JSON texts; only a newline ends a record."""
    text = json.dumps(RECORDS, ensure_ascii=False) if name.endswith(".json") else lines(RECORDS)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    found = read_records(tmp_path / name)
    assert [record for _, record in found] == RECORDS
    word = "item" if name.endswith(".json") else "line"
    assert [place for place, _ in found] == [f"{word} {number}" for number in (1, 2, 3)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_byte_order_mark_is_read_over(tmp_path, name):
    text = json.dumps(RECORDS) if name.endswith(".json") else lines(RECORDS)
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert [record for _, record in read_records(tmp_path / name)] == RECORDS


def test_empty_lines_and_windows_line_ends_count_but_hold_nothing(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\r\n{"a": 1}\r\n\n{"a": 2}')
    assert read_records(file) == [("line 2", {"a": 1}), ("line 4", {"a": 2})]
    file.write_bytes(b"")
    assert read_records(file) == []


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", b'{"a": 1}\n{oops\n', r"a.jsonl, line 2: not valid JSON .*; do it again$"),
        ("a.jsonl", b'{"a": 1}\n5\n', "line 2: a mapping of fields is wanted, not int; do it again"),
        ("a.json", b'[{"a": 1},\n 5,\n oops]', "line 3: not valid JSON"),
        ("a.json", b'{"a": 1}', "must hold one array"),
        ("a.json", b'[{"a": 1}, []]', "item 2: a mapping of fields is wanted, not list"),
        ("a.jsonl", b'{"a": "caf\xe9"}\n', "cannot be read .*utf-8.*; do it again"),
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": ' + b"[" * 200_000 + b"\n",
            "line 2: JSON beyond .*RecursionError.*; do it again",
        ),
        ("a.json", b"[{" + b'"a": ' + b"1" * 5000 + b"}]", "a.json: JSON beyond .*5000 digits.*; do it again"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 100)[:-9], "cannot be read"),
        ("a.jsonl.gz", b'{"a": 1}\n', "cannot be read"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_records(tmp_path / name, remedy="do it again")


def test_a_file_that_is_not_there_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="none.jsonl cannot be read .*No such file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot be read .*; save it as UTF-8"):
        read_text(tmp_path, "save it as UTF-8")


def test_a_torn_last_line_is_refused_or_dropped(tmp_path, caplog):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    with pytest.raises(InputError, match="line 3: not valid JSON"):
        read_records(file)
    with caplog.at_level(logging.WARNING):
        assert [record for _, record in read_records(file, drop_torn=True)] == [{"a": 1}, {"a": 2}]
    assert "the last line is truncated and dropped" in caplog.text
    file.write_text('{"a": 1}')  # a killed process may also have left nothing but a torn line
    assert read_records(file, drop_torn=True) == [] and read_records(file) == [("line 1", {"a": 1})]
