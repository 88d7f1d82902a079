"""Prompt templates: the paper's, to the letter, and what a wrong name says."""

import json
import shutil
from pathlib import Path

import pytest

from eval.run.first_prompt import check_first_prompt
from eval.run.prompts import ALIASES, TEMPLATES, render, rendered, template_name
from impart.errors import InputError
from impart.tokenizer import load_tokenizer

TINY = Path(__file__).resolve().parents[1] / "assets" / "tiny"


def test_the_paper_s_prompts_to_the_letter():
    assert render("wizardmath", "1 + 1?") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n1 + 1?\n\n### Response: Let's think step by step."
    )
    assert render("wizardcoder", "def f():") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "\n### Instruction:\nCreate a Python script for this problem:\ndef f():\n\n### Response:"
    )


def test_braces_of_an_instruction_stay():
    assert render("none", "{x} {instruction} \\frac{1}{2}") == "{x} {instruction} \\frac{1}{2}"
    assert "{'a': {0}}" in render("llama2", "{'a': {0}}")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_holds_the_instruction_once_and_no_begin_token(name):
    prompt = render(name, "INSTRUCTION")
    assert prompt.count("INSTRUCTION") == 1
    assert not prompt.startswith(("<s>", "<|begin_of_text|>"))


def test_names():
    assert template_name(None, "wizardmath") == "wizardmath"
    assert template_name("Plain", "wizardmath") == "none"
    assert template_name("llama-3-instruct", "wizardmath") == "llama3"
    assert template_name("auto", "wizardmath") == template_name(None, None) == "auto"
    assert set(ALIASES.values()) <= set(TEMPLATES)


def test_a_template_that_does_not_exist():
    with pytest.raises(InputError, match="'vicuna' does not exist; take auto .* wizardmath"):
        template_name("vicuna", None)


@pytest.fixture
def tokenizer_folder(tmp_path) -> Path:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / "base" / file, tmp_path / file)
    return tmp_path


def test_auto_is_the_tokenizer_s_own_template(tokenizer_folder):
    (tokenizer_folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<user>{{ m['content'] }}</user>{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    assert rendered("auto", ["hi", "{x}"], tokenizer_folder) == ["<user>hi</user><bot>", "<user>{x}</user><bot>"]


@pytest.mark.parametrize("adds", [True, False])
def test_auto_never_begins_with_two_begin_tokens(tokenizer_folder, adds):
    """Chat templates write the begin token, and most tokenizers add it again."""
    from transformers import AutoTokenizer

    file = tokenizer_folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    assert tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"] == "<s>"
    file.write_text(json.dumps(tokenizer | ({} if adds else {"post_processor": None})))
    (tokenizer_folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    )
    prompt = rendered("auto", ["hi"], tokenizer_folder)[0]
    assert prompt == ("[hi]" if adds else "<s>[hi]")
    loaded = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert loaded(prompt)["input_ids"].count(loaded.bos_token_id) == 1


PARTS = (
    "{% for m in messages %}{{ m['role'] }}: {% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} bot:{% endif %}"
)
SELECTED = PARTS.replace("in m['content'] %}", "in m['content'] | selectattr('type', 'equalto', 'text') %}")


@pytest.mark.parametrize("template", [PARTS, SELECTED])
def test_a_template_that_wants_a_list_of_parts_gets_one(tokenizer_folder, template):
    (tokenizer_folder / "chat_template.jinja").write_text(template)
    assert rendered("auto", ["hi", "a\n b"], tokenizer_folder) == ["user: hi bot:", "user: a\n b bot:"]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('system first') }}", "fails .*system first"),
        ("{% for m in messages %}{{ m['nothing']['at all'] }}{% endfor %}", "fails"),
        ("USER: ASSISTANT:", "leaves out the question"),
        ("{% for m in messages %}{{ m['content'][0:2] }}{% endfor %}", "leaves out the question"),
        ("{% for m in messages %", "fails"),
    ],
)
def test_a_template_that_cannot_be_asked(tokenizer_folder, template, problem):
    (tokenizer_folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=f"the tokenizer's chat template {problem}.*name another with --chat_template"):
        rendered("auto", ["how many?"], tokenizer_folder)


def test_without_the_tokenizers_tokens_a_templates_begin_token_stays(tokenizer_folder):
    (tokenizer_folder / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    )
    assert rendered("auto", ["hi"], tokenizer_folder) == ["[hi]"]
    assert rendered("auto", ["hi"], tokenizer_folder, special_tokens=False) == ["<s>[hi]"]


def test_the_first_prompt_is_looked_at_before_a_run(tokenizer_folder, caplog):
    caplog.set_level("INFO")
    tokenizer = load_tokenizer(tokenizer_folder)
    item = {"id": "7", "question": "How many\n  apples?", "answer": "#### 2"}
    check_first_prompt(item, "Q: How many apples? A:", tokenizer, special_tokens=True)
    assert "the prompt of item 7: " in caplog.text and "1 begin-of-sequence at the start" in caplog.text
    assert "'Q: How many apples? A:'" in caplog.text
    with pytest.raises(InputError, match="item 7 holds none of its texts"):
        check_first_prompt(item, "USER: ASSISTANT:", tokenizer, special_tokens=True)
    with pytest.raises(InputError, match="begins with 2 begin-of-sequence tokens"):
        check_first_prompt(item, "<s>Q: How many apples? A:", tokenizer, special_tokens=True)
    check_first_prompt(item, "<s>Q: How many apples? A:", tokenizer, special_tokens=False)


class Forgetful:
    """A tokenizer of small letters that reads only the first ones."""

    bos_token, bos_token_id = "<s>", 0

    def __init__(self, keeps: int):
        self.keeps = keeps

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(letter) for letter in text[: self.keeps]]}

    def decode(self, ids, **_):
        return "".join(map(chr, ids)).lower()


def test_a_tokenizer_that_loses_the_item(caplog):
    item = {"id": "7", "question": "how many apples?"}
    with pytest.raises(InputError, match="loses its item"):
        check_first_prompt(item, "A long introduction. " + item["question"], Forgetful(20), special_tokens=False)
    check_first_prompt({**item, "question": "How Many?"}, "Q: How Many?", Forgetful(99), special_tokens=False)
    assert "does not keep all of its characters" in caplog.text


def test_auto_without_a_template_or_a_model(tokenizer_folder):
    with pytest.raises(InputError, match="has no chat template; name one of none, wizardmath"):
        rendered("auto", ["hi"], tokenizer_folder)
    with pytest.raises(InputError, match="auto needs MODEL"):
        rendered("auto", ["hi"])


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match="its tokenizer cannot be loaded"):
        rendered("auto", ["x"], tmp_path)
