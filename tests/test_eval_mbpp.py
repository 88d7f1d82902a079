"""MBPP: EvalPlus' own judgement in the sandbox, the public files, and which of them is taken."""

import ast
import json
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from byte_models import CHAT, byte_llama

pytest.importorskip("evalplus", reason="MBPP is prompted and judged by the package evalplus")

from eval import mbpp
from eval.run import mbpp_items
from eval.run.options import benchmark_parser, read_options
from eval.scoring import mbpp as mbpp_scoring
from eval.scoring.mbpp import asked, judge_public, longest_code, public_prompt, solutions_of, stops
from impart.errors import InputError
from impart.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]


def plus(number: int, name: str, body: str, test: str, inputs: list, atol: float = 0) -> dict:
    """One item in the format of EvalPlus' file."""
    return {
        "task_id": f"Mbpp/{number}",
        "prompt": f'"""\nWrite a function.\n{test}\n"""\n',
        "entry_point": name,
        "canonical_solution": body,
        "base_input": inputs,
        "plus_input": [],
        "atol": atol,
        "contract": "",
    }


PLUS = [
    plus(
        3,
        "is_not_prime",
        "\ndef is_not_prime(n):\n    return n < 2 or any(n % i == 0 for i in range(2, n))\n",
        "assert is_not_prime(2) == False",
        [[2], [10], [35], [37]],
    ),
    plus(
        2,
        "similar_elements",
        "\ndef similar_elements(a, b):\n    return tuple(set(a) & set(b))\n",  # order is free
        "assert set(similar_elements((3, 4), (4, 5))) == set((4,))",
        [[[3, 4, 5, 6], [5, 7, 4, 10]]],
    ),
    plus(
        82,
        "volume_sphere",
        "\nimport math\ndef volume_sphere(r):\n    return 4 / 3 * math.pi * r ** 3\n",  # floats
        "assert math.isclose(volume_sphere(10), 4188.79)",
        [[10], [25]],
        1e-4,
    ),
    plus(
        252,
        "convert",
        "\nimport cmath\ndef convert(z):\n    return cmath.polar(z)\n",  # complex numbers as text
        "assert convert(1) == (1.0, 0.0)",
        [["1"], ["(4+0j)"]],
    ),
    plus(
        434,
        "text_match_one",
        "\nimport re\ndef text_match_one(t):\n    return bool(re.search('ab+', t))\n",
        "assert text_match_one('ac') == False",
        [["ac"], ["dc"], ["abba"]],
    ),
]
RIGHT = {
    "Mbpp/3": "def is_not_prime(n):\n    if n < 2: return True\n    return any(n % i == 0 for i in range(2, n))",
    "Mbpp/2": "def similar_elements(a, b):\n    return [x for x in b if x in a][::-1]",
    "Mbpp/82": "def volume_sphere(r):\n    return 4.18879 * r ** 3",
    "Mbpp/252": "import cmath\ndef convert(z):\n    return (abs(z), cmath.phase(z))",
    "Mbpp/434": "def text_match_one(t):\n    return 'ab' in t",
}


def options_of(*arguments: str):
    return read_options(benchmark_parser("", mbpp.MBPP), ["model", "fp32", *arguments])


def direct(*arguments: str) -> mbpp.Benchmark:
    return mbpp.mbpp(options_of("--chat_template", "none", *map(str, arguments)))


@pytest.fixture
def plus_file(tmp_path) -> Path:
    path = tmp_path / "MbppPlus.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in PLUS))
    return path


@pytest.fixture
def public_items() -> list[dict]:
    folder = os.environ.get("IMPART_DATA")
    if not folder:
        pytest.skip("IMPART_DATA is unset: no public mbpp.jsonl to test with")
    return [json.loads(line) for line in (Path(folder) / "mbpp.jsonl").read_text().splitlines()]


def test_evalplus_judges_its_references_and_other_right_answers(plus_file):
    benchmark = direct("--data", plus_file)
    assert benchmark.name == "mbpp" and len(benchmark.items) == 5
    for answers in (
        [item["canonical_solution"] for item in PLUS],
        [RIGHT[item["task_id"]] for item in PLUS],
        [f"{RIGHT[item['task_id']]}\n\nprint('never run')\nassert False" for item in PLUS],
    ):
        verdicts = benchmark.score(benchmark.items, answers)
        assert [verdict.correct for verdict in verdicts] == [True] * 5, [verdict.detail for verdict in verdicts]


@pytest.mark.parametrize(
    "answer",
    [
        "def {name}(*a):\n    return None",
        "def {name}(*a):\n    return 17",
        "x = 1",
        "",
        "def other():\n    return 1",
        "import os\ndef {name}(*a):\n    os._exit(0)\n    return 1",
        "import sys\ndef {name}(*a):\n    return sys.exit(0)",
        "def {name}(*a):\n    while True: pass\n    return 1",
        "def {name}(*a):\n    raise SystemExit\n    return 1",
    ],
)
def test_evalplus_refuses_wrong_answers(plus_file, answer):
    benchmark = direct("--data", plus_file, "--subset", "Mbpp/3,Mbpp/82")
    verdicts = benchmark.score(benchmark.items, [answer.format(name=item["entry_point"]) for item in benchmark.items])
    assert not any(verdict.correct for verdict in verdicts)


def test_a_failing_base_test_is_named(plus_file):
    benchmark = direct("--data", plus_file, "--limit", "1")
    [verdict] = benchmark.score(benchmark.items, ["def is_not_prime(n):\n    return n != 2"])
    assert verdict.detail == "failed: AssertionError: EvalPlus: base test 4 of 4"


def test_evalplus_itself_agrees(plus_file, monkeypatch):
    """The same solutions through EvalPlus' own executor, in its own process."""
    from evalplus.data import mbpp as data
    from evalplus.eval import PASS
    from evalplus.evaluate import check_correctness
    from evalplus.gen.util import trusted_exec

    benchmark = direct("--data", plus_file)
    assert data.MBPP_OVERRIDE_PATH == str(plus_file)
    problems = data.get_mbpp_plus()
    answers = [RIGHT[item["task_id"]] for item in PLUS[:3]]
    answers += ["def convert(z):\n    return 0", "def text_match_one(t): return 3"]
    ours = [verdict.correct for verdict in benchmark.score(benchmark.items, answers)]
    theirs = []
    solutions = solutions_of(
        answers,
        [item["prompt"] for item in benchmark.items],
        True,
        [item["entry_point"] for item in benchmark.items],
    )
    for item, solution in zip(benchmark.items, solutions, strict=True):
        problem = problems[item["id"]]
        expected, seconds = trusted_exec(
            problem["prompt"] + problem["canonical_solution"],
            problem["base_input"],
            problem["entry_point"],
            record_time=True,
        )
        result = check_correctness(
            "mbpp",
            0,
            problem,
            solution,
            {"base": expected, "base_time": seconds},
            base_only=True,
            fast_check=True,
        )
        theirs.append(result["base"][0] == PASS)
    assert ours == theirs == [True, True, True, False, False]


def test_the_prompt_is_evalplus_own(plus_file):
    benchmark = direct("--data", plus_file)
    assert benchmark.prompts[0] == '"""\nWrite a function.\nassert is_not_prime(2) == False\n"""\n'
    assert "\nassert" in benchmark.stop and benchmark.max_tokens == 768

    class Chat:
        chat_template = "x"

        def apply_chat_template(self, messages, tokenize):
            return "".join(f"<{message['role']}>{message['content']}</s>" for message in messages)

    prompt = asked(PLUS[0]["prompt"], Chat())
    assert prompt.startswith("<user>Please provide a self-contained Python script") and prompt.endswith("```python\n")
    assert "\n```\n" in stops(direct=False) and "\nassert" not in stops(direct=False)


def test_a_chat_template_that_writes_the_begin_token_does_not_double_it(plus_file, tmp_path):
    model = byte_llama(tmp_path / "model", chat="{{ bos_token }}" + CHAT)
    file = model / "tokenizer.json"
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}
    template["single"].append({"Sequence": {"id": "A", "type_id": 0}})
    template |= {"pair": template["single"], "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": template}))
    benchmark = mbpp.mbpp(replace(options_of("--data", str(plus_file)), models=(str(model),)))
    ids = load_tokenizer(model)(benchmark.prompts[0])["input_ids"]
    assert ids.count(0) == 1 and ids[0] == 0 and "Write a function." in benchmark.prompts[0]


def test_solutions_are_sanitized_as_evalplus_does():
    prompt = PLUS[0]["prompt"]
    text = (
        "import re\n\ndef is_not_prime(n):\n\treturn helper(n)\n\ndef helper(n):\n\treturn True\n\n"
        "def unused():\n\treturn 1\nprint("
    )
    code, whole = solutions_of([text] * 2, [prompt] * 2, True, ["is_not_prime", None])
    assert "helper" in code and "unused" not in code and "print" not in code and "\t" not in code
    assert "unused" in whole
    absurd = ["\0", "(" * 500, "-" * 3000 + "1", "lambda:" * 5000]
    assert solutions_of(absurd, [prompt] * 4, False, ["f"] * 4) == absurd  # Python's parser gives up: as they are


def test_an_answer_is_extracted_as_by_evalplus_and_without_delay():
    from evalplus.sanitize import code_extract

    pieces = ("def f(x):", "    return x", "", "prose here", "```python", "    y", "x = 1", "(", "'''", "if x:", "# c")
    texts = ["\n".join(random.Random(seed).choices(pieces, k=seed % 13)) for seed in range(150)]
    assert [longest_code(text) for text in texts] == [code_extract(text) for text in texts]
    begun = time.process_time()
    assert longest_code("x\n" * 384) == "\n".join("x" * 384)  # every range parses: EvalPlus tries 74 thousand of them
    assert time.process_time() - begun < 5


def test_an_answer_whose_syntax_takes_too_long_is_tested_as_it_is(monkeypatch):
    monkeypatch.setattr(mbpp_scoring, "EXTRACTION_SECONDS", 0.2)
    slow = "(\n" * 384
    assert solutions_of([slow, "x = 1\ny = 2\nno code"], [""] * 2, False, [None] * 2) == [slow, "x = 1\ny = 2"]


def test_public_references_survive_the_extraction(public_items):
    chosen = [
        {**item, "id": str(item["task_id"])}
        for item in public_items
        if item["task_id"] in (11, 12, 367, 512, 601, 630, 927, 940)
    ]
    verdicts = judge_public(chosen, [item["code"] for item in chosen], direct=True)
    assert [verdict.correct for verdict in verdicts] == [True] * 8, [verdict.detail for verdict in verdicts]
    fenced = judge_public(chosen, [item["code"].replace("\r", "") + "\n" for item in chosen], direct=False)
    assert all(verdict.correct for verdict in fenced)
    wrong = judge_public(chosen, ["def f(): pass"] * 8, direct=True)
    assert not any(verdict.correct for verdict in wrong)


@pytest.mark.parametrize(("file", "count"), [("mbpp.jsonl", 974), ("mbpp_sanitized.json", 427)])
def test_every_public_reference_passes(file, count):
    folder = os.environ.get("IMPART_DATA")
    if not folder:
        pytest.skip(f"IMPART_DATA is unset: no {file} to test with")
    benchmark = direct("--data", Path(folder) / file, "--subset", f"0-{count - 1}")
    verdicts = benchmark.score(benchmark.items, [item["code"] for item in benchmark.items])
    assert len(verdicts) == count
    assert [
        (item["id"], verdict.detail)
        for item, verdict in zip(benchmark.items, verdicts, strict=True)
        if not verdict.correct
    ] == []


def test_the_public_file_is_another_benchmark_and_its_test_split(public_items, monkeypatch, tmp_path):
    monkeypatch.setattr(mbpp_items, "evalplus_cache", lambda: tmp_path / "nothing")
    monkeypatch.delenv("MBPP_OVERRIDE_PATH", raising=False)
    benchmark = direct()  # IMPART_DATA has the public file only
    assert (benchmark.name, len(benchmark.items)) == ("mbpp_public", 500)
    assert (benchmark.items[0]["id"], benchmark.items[-1]["id"]) == ("11", "510")
    assert benchmark.prompts[0] == public_prompt(benchmark.items[0])
    assert ast.parse(benchmark.prompts[0])
    assert len(direct("--limit", "7").items) == 7
    assert [item["id"] for item in direct("--subset", "3,601").items] == ["3", "601"]


def test_the_sanitized_file_is_a_third_one(monkeypatch):
    folder = os.environ.get("IMPART_DATA")
    if not folder:
        pytest.skip("IMPART_DATA is unset: no mbpp_sanitized.json to test with")
    benchmark = direct("--data", Path(folder) / "mbpp_sanitized.json")
    assert benchmark.name == "mbpp_sanitized"
    with_imports = [item for item in benchmark.items if item["test_imports"]][:5]
    assert all(verdict.correct for verdict in benchmark.score(with_imports, [item["code"] for item in with_imports]))


def test_evalplus_file_comes_first(plus_file, tmp_path, monkeypatch):
    monkeypatch.delenv("MBPP_OVERRIDE_PATH", raising=False)
    monkeypatch.setenv("IMPART_DATA", str(tmp_path))
    (tmp_path / "mbpp.jsonl").write_text("{}\n")
    assert mbpp_items.chosen_file(options_of()) == (mbpp_items.EVALPLUS, plus_file)
    monkeypatch.setenv("MBPP_OVERRIDE_PATH", str(plus_file))
    monkeypatch.delenv("IMPART_DATA")
    assert mbpp_items.chosen_file(options_of()) == (mbpp_items.EVALPLUS, plus_file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"task_id": "Mbpp/3", "prompt": "", "entry_point": "f", "base_input": [], "plus_input": [], "atol": 0}',
            "line 1: field 'canonical_solution' is missing",
        ),
        ('{"task_id": 3, "text": "t"}', "line 1: field 'test_list' is missing"),
        ('{"question": "x"}', "neither 'base_input'"),
        ("{", "not valid JSON"),
        ("", "neither 'base_input'"),
    ],
)
def test_bad_files_are_named_with_line_and_field(content, message, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(content + "\n")
    with pytest.raises(InputError, match=message):
        direct("--data", path)


def test_bad_flags(plus_file):
    with pytest.raises(InputError, match="EvalPlus knows auto"):
        mbpp.mbpp(options_of("--chat_template", "llama2", "--data", str(plus_file)))
    with pytest.raises(InputError, match="unrecognized arguments: --scoring release"):
        direct("--data", plus_file, "--scoring", "release")
    with pytest.raises(InputError, match="no such file"):
        direct("--data", plus_file.with_name("nothing.jsonl"))
    with pytest.raises(InputError, match="names none"):
        direct("--data", plus_file, "--subset", "Mbpp/9999")


def test_no_network_and_no_file_is_an_input_error(tmp_path, monkeypatch):
    from evalplus.data import mbpp as data

    monkeypatch.setattr(mbpp_items, "evalplus_cache", lambda: tmp_path / "nothing")
    monkeypatch.setattr(data, "MBPP_OVERRIDE_PATH", None)
    monkeypatch.setattr(data, "get_dataset_metadata", lambda *_: ("http://127.0.0.1:9/x.jsonl.gz", str(tmp_path / "x")))
    monkeypatch.delenv("MBPP_OVERRIDE_PATH", raising=False)
    monkeypatch.delenv("IMPART_DATA", raising=False)
    with pytest.raises(InputError, match="cannot be downloaded.*--data MbppPlus.jsonl"):
        direct()


@pytest.mark.vllm
@pytest.mark.slow
def test_a_whole_run_with_vllm(plus_file, tmp_path, script):
    pytest.importorskip("vllm")
    model = byte_llama(tmp_path / "model", chat=CHAT)
    ended = script("eval/scripts/mbpp.sh", model, "bf16", "--limit", "2", "--data", plus_file, cwd=tmp_path)
    assert ended.code == 0, ended.err[-3000:]
    result = json.loads((tmp_path / "results/model/mbpp/0.json").read_text())
    assert result["n"] == 2 and result["settings"]["template"] == "evalplus chat"
    first = json.loads((tmp_path / "results/model/mbpp/0.jsonl").read_text().splitlines()[0])
    assert first["prompt"].startswith("<user>Please provide") and first["prompt"].endswith("```python\n")
