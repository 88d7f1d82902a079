"""How an instruction becomes a prompt: by a named template or the tokenizer's own.

Templates carry no begin-of-sequence token: the tokenizer adds it, once, whatever the backend.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from impart.errors import InputError
from impart.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"

TEMPLATES = {
    "none": "{instruction}",
    "wizardmath": ALPACA + "### Instruction:\n{instruction}\n\n### Response: Let's think step by step.",
    # One line break more than WizardMath's: the prompts of the paper differ in this.
    "wizardcoder": ALPACA + "\n### Instruction:\nCreate a Python script for this problem:\n{instruction}\n\n"
    "### Response:",
    "llama2": "[INST] {instruction} [/INST]",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "[INST] {instruction} [/INST]",
    "openchat": "GPT4 Correct User: {instruction}<|end_of_turn|>GPT4 Correct Assistant:",
}
ALIASES = {
    "plain": "none",
    "llama-2-chat": "llama2",
    "llama2-chat": "llama2",
    "llama-3-instruct": "llama3",
    "llama3-instruct": "llama3",
}


def template_name(choice: str | None, paper: str | None) -> str:
    """`auto` (the tokenizer's own) or the name of a template: --chat_template, else the paper's choice, else `auto`."""
    wanted = choice or paper or "auto"
    name = ALIASES.get(wanted.lower(), wanted.lower())
    if name != "auto" and name not in TEMPLATES:
        raise InputError(
            f"chat template {wanted!r} does not exist; take auto (the tokenizer's own) or one of "
            f"{', '.join([*TEMPLATES, *ALIASES])}"
        )
    return name


def render(name: str, instruction: str) -> str:
    """The prompt of a named template. The instruction may contain braces."""
    return TEMPLATES[name].replace("{instruction}", instruction)


def rendered(name: str, instructions: Sequence[str], tokenizer_folder: Path | None = None) -> list[str]:
    """The prompts of a named template or, for `auto`, of the chat template that the tokenizer brings.

    InputError for `auto` without a tokenizer, or where the tokenizer has no chat template.
    """
    if name != "auto":
        return [render(name, instruction) for instruction in instructions]
    if tokenizer_folder is None:
        raise InputError("--chat_template auto needs MODEL, whose tokenizer has the template; give MODEL or name one")
    tokenizer = load_tokenizer(tokenizer_folder)
    if not tokenizer.chat_template:
        raise InputError(
            f"--chat_template auto: the tokenizer of {tokenizer_folder} has no chat template; name one of "
            f"{', '.join(TEMPLATES)}"
        )
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": instruction}], tokenize=False, add_generation_prompt=True
        )
        for instruction in instructions
    ]
    # The tokenizer adds its begin-of-sequence token again where it always does.
    bos = tokenizer.bos_token
    adds = bos is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return [prompt.removeprefix(bos) if adds else prompt for prompt in prompts]
