"""The shared command line: order, ranges, and what a wrong word says."""

from pathlib import Path

import pytest

from eval.gsm8k import GSM8K
from eval.run.options import benchmark_parser, options_from, parse, read_options
from eval.tiny import BENCHMARKS
from impart.errors import InputError


def options(*arguments: str):
    return read_options(benchmark_parser("doc", GSM8K), arguments)


def test_the_authors_command_line():
    given = options("model", "fp16")
    assert (given.model, given.dtype, given.backend, given.seed, given.scoring) == ("model", "fp16", "auto", 0, "paper")
    assert (given.results_dir, given.limit, given.chat_template, given.rescore) == (Path("results"), None, None, False)
    assert options("model").dtype == "auto"


@pytest.mark.parametrize(
    "arguments",
    [("model", "bf16", "--limit", "3"), ("--limit", "3", "model", "bf16"), ("model", "--limit", "3", "bf16")],
)
def test_flags_may_stand_anywhere(arguments):
    given = options(*arguments)
    assert (given.model, given.dtype, given.limit) == ("model", "bf16", 3)


def test_both_spellings():
    assert options("m", "bfloat16") == options("m", "bf16") and options("m", "float32").dtype == "fp32"
    assert options("m", "--results_dir", "x", "--chat_template", "none", "--max_model_len", "9") == options(
        "m", "--results-dir", "x", "--chat-template", "none", "--max-model-len", "9"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "MODEL is missing"),
        (("m", "fp17"), "invalid choice: 'fp17'"),
        (("m", "--limit", "0"), "--limit 0 is out of range; it must be at least 1"),
        (("m", "--limit", "many"), "invalid int value: 'many'"),
        (("m", "--seed", "-1"), "--seed -1 is out of range"),
        (("m", "--tensor_parallel", "0"), "--tensor_parallel 0"),
        (("m", "--batch_size", "0"), "--batch_size 0"),
        (("m", "--max_model_len", "0"), "--max_model_len 0"),
        (("m", "--gpu_memory", "0"), "--gpu_memory 0.0 is out of range"),
        (("m", "--gpu_memory", "1.5"), "--gpu_memory 1.5 is out of range"),
        (("m", "--gpu_memory", "nan"), "--gpu_memory nan is out of range"),
        (("m", "--backend", "tgi"), "invalid choice: 'tgi'"),
        (("m", "--scoring", "loose"), "invalid choice: 'loose'"),
        (("m", "--colour", "red"), "unrecognized arguments: --colour red"),
        (("--rescore",), "MODEL is missing"),
        (("m", "--rescore", "nothing.jsonl"), "--rescore nothing.jsonl: no such file"),
    ],
)
def test_wrong_input(arguments, message):
    with pytest.raises(InputError, match=message):
        options(*arguments)


def test_rescore_with_and_without_a_file(tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text("")
    assert options("m", "--rescore").rescore and options("m", "--rescore").rescore_file is None
    given = options("--rescore", str(file))
    assert given.rescore and given.rescore_file == file and given.model is None


def test_several_models_and_a_dtype():
    def several(*arguments: str):
        given = parse(benchmark_parser("doc", BENCHMARKS[0]), arguments)
        return given.models, given.dtype, options_from(given).model

    assert several("x/a", "x/b", "fp32") == (("x/a", "x/b"), "fp32", "x/a")
    assert several("x/a", "x/b") == (("x/a", "x/b"), "auto", "x/a")
    assert several("x/a", "--limit", "3", "x/b", "bf16") == (("x/a", "x/b"), "bf16", "x/a")
    assert several("a", "--dtype", "bf16") == (("a",), "bf16", "a")
    assert several("fp16") == (("fp16",), "auto", "fp16")
    with pytest.raises(InputError, match="MODEL"):
        several()
