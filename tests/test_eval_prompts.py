"""Prompt templates: the paper's, to the letter, and what a wrong name says."""

import json
import shutil
from pathlib import Path

import pytest

from eval.run.prompts import ALIASES, TEMPLATES, render, rendered, template_name
from impart.errors import InputError

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


def test_auto_without_a_template_or_a_model(tokenizer_folder):
    with pytest.raises(InputError, match="has no chat template; name one of none, wizardmath"):
        rendered("auto", ["hi"], tokenizer_folder)
    with pytest.raises(InputError, match="auto needs MODEL"):
        rendered("auto", ["hi"])


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match="its tokenizer cannot be loaded"):
        rendered("auto", ["x"], tmp_path)
