"""Calibration tokens: right shape, decided by the seed, taken from the text; a text that is too short is refused."""

import json

import pytest
import torch

from impart.errors import InputError
from quantize.calibration import calibration_sequences, documents_of, windows_of_documents, windows_of_text


def words(text):
    """Every word is a token: the number in it."""
    return [int(word[1:]) for word in text.split()]


def text_of(first, last):
    return " ".join(f"w{number}" for number in range(first, last))


def test_windows_are_pieces_of_the_text_and_do_not_overlap():
    ids = windows_of_text([text_of(0, 1000)], words, count=20, length=30, seed=0, source="x")
    assert ids.shape == (20, 30) and ids.dtype == torch.int64
    assert torch.equal(ids - ids[:, :1], torch.arange(30).expand(20, 30))
    assert len(set(ids.flatten().tolist())) == 600


def test_seed_decides():
    def take(seed):
        return windows_of_text([text_of(0, 500), text_of(500, 900)], words, count=5, length=10, seed=seed, source="x")

    assert torch.equal(take(3), take(3))
    assert not torch.equal(take(3), take(4))


def test_long_documents_only():
    documents = [text_of(100 * i, 100 * i + 10 * i) for i in range(10)]  # 0, 10, ... 90 tokens
    ids = windows_of_documents(documents, words, count=4, length=50, seed=1, source="x")
    assert torch.equal(ids - ids[:, :1], torch.arange(50).expand(4, 50))
    assert len({int(first) // 100 for first in ids[:, 0]}) == 4
    with pytest.raises(InputError, match="has 4 documents of more than 50 tokens among 10, and 5 were wanted"):
        windows_of_documents(documents, words, count=5, length=50, seed=1, source="x")


def test_too_short_says_how_many_tokens_were_needed(tmp_path):
    file = tmp_path / "short.txt"
    file.write_text(text_of(0, 99))
    with pytest.raises(InputError, match="too short: 99 tokens, but 4 sequences of 25 need 100"):
        calibration_sequences(str(file), words, count=4, length=25, seed=0)
    assert calibration_sequences(str(file), words, count=3, length=33, seed=0).shape == (3, 33)


def test_files(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"text": text_of(10 * i, 10 * i + 10)}) + "\n" for i in range(10)) + "\n")
    whole = tmp_path / "a.json"
    whole.write_text(json.dumps([{"prompt": text_of(10 * i, 10 * i + 10)} for i in range(10)]))
    from_lines = calibration_sequences(str(lines), words, count=4, length=10, seed=5)
    assert torch.equal(
        from_lines, calibration_sequences(str(whole), words, count=4, length=10, seed=5, text_field="prompt")
    )
    assert torch.equal(from_lines - from_lines[:, :1], torch.arange(10).expand(4, 10))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x", "must end in .txt, .jsonl or .json"),
        ("a.jsonl", '{"text": "w1"}\n{"body": "w2"}\n', "line 2: there is no text in a field 'text'"),
        ("a.jsonl", '{"text": "w1"}\n{oops\n', "line 2: not valid JSON"),
        ("a.json", '{"text": "w1"}', "must hold one array"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        documents_of(str(file))


def test_unknown_source():
    with pytest.raises(InputError, match="neither a file nor one of c4, wikitext2"):
        documents_of("pile")


def test_no_hub_is_an_input_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="the hub does not give Salesforce/wikitext .* name a local"):
        documents_of("wikitext2")


def test_texts_may_hold_the_line_ends_of_unicode(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one\u2028two\x85three"}\n{"text": "four"}\n', encoding="utf-8")
    assert documents_of(str(file)) == ["one\u2028two\x85three", "four"]


@pytest.mark.parametrize("name, text", [("a.txt", b"caf\xe9"), ("a.jsonl", b'{"text": "caf\xe9"}\n')])
def test_a_text_that_is_not_utf8_is_one_line(tmp_path, name, text):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(InputError, match=f"{name} cannot be read .*utf-8"):
        documents_of(str(tmp_path / name))
