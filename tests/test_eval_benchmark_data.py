"""Items from files: formats, field checks with line and field, --subset and --limit, completions for --rescore."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.run.data import Source, completions_from, find_file, load_items, select
from impart.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Source("sums", "sums.jsonl", {"question": str, "answer": int}, optional={"level": str})
ITEMS = [{"question": f"{n} + 1?", "answer": n + 1, "level": "easy" if n < 3 else "hard"} for n in range(5)]


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.delenv("IMPART_DATA", raising=False)
    return jsonl(tmp_path / "sums.jsonl", ITEMS)


def test_a_file_a_folder_and_the_variable_give_the_same(file, monkeypatch):
    direct = load_items(SOURCE, file)
    assert [item["question"] for item in direct.items] == [item["question"] for item in ITEMS]
    assert [item["id"] for item in direct.items] == ["0", "1", "2", "3", "4"]
    assert direct.total == 5 and direct.origin == str(file)
    assert load_items(SOURCE, file.parent) == direct
    monkeypatch.setenv("IMPART_DATA", str(file.parent))
    assert load_items(SOURCE) == direct


def test_json_and_gz_hold_the_same_items(file, tmp_path):
    array = tmp_path / "sums.json"
    array.write_text(json.dumps(ITEMS, indent=2))
    packed = tmp_path / "sums.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert load_items(SOURCE, array).items == load_items(SOURCE, packed).items == load_items(SOURCE, file).items


def test_lines_are_split_at_newlines_alone(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text(
        '{"question": "a\u2028b\u0085c", "answer": 1}\r\n\n{"question": "d", "answer": 2}', encoding="utf-8"
    )
    assert [item["question"] for item in load_items(SOURCE, path).items] == ["a\u2028b\u0085c", "d"]


def test_limit_and_digest(file):
    assert [item["answer"] for item in load_items(SOURCE, file, limit=2).items] == [1, 2]
    assert load_items(SOURCE, file, limit=2).sha256 != load_items(SOURCE, file).sha256
    assert len(load_items(SOURCE, file, limit=99).items) == 5


@pytest.mark.parametrize(
    ("subset", "ids"),
    [
        ("3", ["3"]),
        ("3,1", ["1", "3"]),
        ("1-2", ["1", "2"]),
        ("3-99", ["3", "4"]),
        ("level=easy", ["0", "1", "2"]),
        ("level=easy,4", ["0", "1", "2", "4"]),
        (" 0 , 0-1 ", ["0", "1"]),
        ("answer=5", ["4"]),
    ],
)
def test_subset(file, subset, ids):
    assert [item["id"] for item in load_items(SOURCE, file, subset=subset).items] == ids


def test_subset_before_limit(file):
    assert [item["id"] for item in load_items(SOURCE, file, limit=1, subset="level=hard").items] == ["3"]


@pytest.mark.parametrize("subset", ["9", "level=none", "7-9", "3,nothing", ","])
def test_a_subset_that_names_nothing(file, subset):
    with pytest.raises(InputError, match="--subset .* names none of the 5 items; .*the first is '0'"):
        load_items(SOURCE, file, subset=subset)


def test_ids_of_their_own_field():
    items = [{"id": "HumanEval/1"}, {"id": "2-3"}]
    assert select(items, "2-3") == [items[1]]  # an id before a range
    assert select(items, "HumanEval/1") == [items[0]]


BROKEN = [
    (
        '{"question": "a", "answer": 1}\n{"question": "b"}\n',
        "line 2: field 'answer' is missing; sums needs question, answer",
    ),
    ('{"question": 7, "answer": 1}\n', "line 1: field 'question' is int, but sums needs text"),
    ('{"question": "a", "answer": "1"}\n', "line 1: field 'answer' is str, but sums needs a whole number"),
    ('{"question": "a", "answer": true}\n', "line 1: field 'answer' is bool"),
    ('{"question": "a", "answer": 1, "level": 3}\n', "line 1: field 'level' is int, but sums needs text"),
    ('{"question": "a", "answer": 1}\n\n{"question": "b", "ans\n', "line 3: not valid JSON"),
    ('["a", 1]\n', "line 1: a mapping of fields is wanted, not list"),
    ("", "holds no items"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_file_is_named_with_line_and_field(tmp_path, text, message):
    path = tmp_path / "broken.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        load_items(SOURCE, path)
    assert str(path) in str(raised.value)


def test_a_broken_array_file(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"question": "a"}')
    with pytest.raises(InputError, match="must hold one array"):
        load_items(SOURCE, path)
    path.write_text('[{"question": "a", "answer": 1}, 5]')
    with pytest.raises(InputError, match="item 2: a mapping"):
        load_items(SOURCE, path)


def test_files_that_cannot_be_read(tmp_path):
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"question": "caf\xe9", "answer": 1}\n')
    with pytest.raises(InputError, match="cannot be read"):
        load_items(SOURCE, latin)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        load_items(SOURCE, torn)


def test_two_items_with_one_id(tmp_path):
    path = jsonl(tmp_path / "twice.jsonl", [{"key": 1}, {"key": 1}])
    with pytest.raises(InputError, match="two items have the id '1'"):
        load_items(Source("twice", path.name, {"key": int}, id_field="key"), path)


def test_paths_that_do_not_exist(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such file; sums reads a file like sums.jsonl"):
        find_file(SOURCE, tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match="no such file"):
        find_file(SOURCE, tmp_path)  # a folder without the file
    monkeypatch.setenv("IMPART_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="IMPART_DATA=.*nowhere is not a folder"):
        find_file(SOURCE)


def test_without_a_file_and_without_a_hub(tmp_path, monkeypatch):
    monkeypatch.delenv("IMPART_DATA", raising=False)
    with pytest.raises(InputError, match="sums is not on the hub; give --data FILE"):
        load_items(SOURCE)


def test_the_hub_s_client_gives_the_same_items(file, tmp_path, monkeypatch):
    """`datasets` itself, on a folder in place of a hub id; it caches below HF_HOME, set before its import."""
    pytest.importorskip("datasets")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "hub"
    folder.mkdir()
    jsonl(folder / "test.jsonl", ITEMS)
    remote = Source("sums", "sums.jsonl", SOURCE.fields, hub=(str(folder), None, "test"))
    assert load_items(remote).items == load_items(SOURCE, file).items
    (folder / "test.jsonl").write_text('{"question": "a", "answer": "one"}\n')
    with pytest.raises(InputError, match="row 0: field 'answer' is str"):
        load_items(remote)


def test_a_hub_that_does_not_answer_says_what_else_works(script, tmp_path):
    """HF_DATASETS_OFFLINE makes the real client refuse at once; the message has to name the two other ways."""
    code = (
        "import os, sys; os.environ['HF_DATASETS_OFFLINE'] = os.environ['HF_HUB_OFFLINE'] = '1'; "
        "os.environ.pop('IMPART_DATA', None); sys.path[:0] = ['.']\n"
        "from eval.run.data import Source, load_items\n"
        "load_items(Source('gsm8k', 'gsm8k_test.jsonl', {'question': str}, hub=('nobody/none', 'main', 'test')))\n"
    )
    file = tmp_path / "ask.py"
    file.write_text(code)
    ended = script(file)
    assert ended.code == 1 and "InputError" in ended.err
    assert "the hub does not give nobody/none" in ended.err and "IMPART_DATA" in ended.err


def test_a_data_set_that_is_one_file_comes_from_the_hub_s_cache(tmp_path, monkeypatch):
    """The real client, offline, on a cache that holds the file as a download would have left it."""
    revision = "0" * 40
    snapshot = tmp_path / "datasets--tatsu-lab--alpaca_eval" / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(revision)
    answers = [{"instruction": f"Say {n}.", "output": str(n), "generator": "g"} for n in range(3)]
    (snapshot / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(answers))
    code = (
        "from eval.alpacaeval import SOURCE; from eval.run.data import load_items\n"
        "items = load_items(SOURCE, limit=2)\n"
        "print(items.origin, [item['output'] for item in items.items], items.total)"
    )
    for name in ("IMPART_DATA", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hub:tatsu-lab/alpaca_eval ['0', '1'] 3\n"


def test_completions_from_a_file(tmp_path):
    path = jsonl(tmp_path / "samples.jsonl", [{"task_id": "a", "completion": "x"}, {"id": "b", "completion": ""}])
    assert completions_from(path, ["a", "b", "c"]) == [("a", "x"), ("b", "")]
    path = jsonl(tmp_path / "twice.jsonl", [{"id": "a", "completion": text} for text in "xyx"])
    assert completions_from(path, ["a"], several=True) == [("a", "x"), ("a", "y"), ("a", "x")]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"task_id": "z", "completion": "x"}], "line 1: task_id 'z' is none of the 2 items .the first is 'a'"),
        ([{"completion": "x"}], "line 1: field 'id' .* is missing"),
        ([{"id": "a", "text": "x"}], "line 1: field 'completion' is missing"),
        ([{"id": "a", "completion": 3}], "line 1: field 'completion' is missing or no text"),
        ([{"id": "a", "completion": "x"}, {"id": "a", "completion": "y"}], "line 2: a second completion of 'a'"),
        ([], "holds no completions"),
    ],
)
def test_broken_completion_files(tmp_path, records, message):
    with pytest.raises(InputError, match=message):
        completions_from(jsonl(tmp_path / "samples.jsonl", records), ["a", "b"])
