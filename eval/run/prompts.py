"""How an instruction becomes a prompt: by a named template or the tokenizer's own.

Templates carry no begin-of-sequence token: the tokenizer adds it, once, whatever the backend (IFEval: `--bos`).
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.run.first_prompt import holds
from impart.errors import InputError, reason_of
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


def rendered(
    name: str, instructions: Sequence[str], tokenizer_folder: Path | None = None, special_tokens: bool = True
) -> list[str]:
    """The prompts of a named template or, for `auto`, of the chat template that the tokenizer brings.

    special_tokens: whether the tokenizer will add its own to the prompts. InputError for `auto` without a tokenizer,
    without a chat template, or with one that cannot be asked a question.
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
    chat = ChatTemplate(tokenizer, special_tokens)
    return [
        chat.apply_chat_template([{"role": "user", "content": instruction}], add_generation_prompt=True)
        for instruction in instructions
    ]


class ChatTemplate:
    """A tokenizer's chat template, given text in the form that it takes, and checked to have used it.

    special_tokens: whether the tokenizer will add its own; then a begin-of-sequence token of the template is left out.
    """

    def __init__(self, tokenizer: Any, special_tokens: bool = True):
        self.tokenizer, self.chat_template = tokenizer, tokenizer.chat_template
        adds = special_tokens and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        self.added = tokenizer.bos_token if adds and tokenizer.bos_token else ""

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The prompt. InputError where the template fails, or leaves a message out, in both forms of content.

        Most templates take a message's content as text; some, of models that also see pictures, as a list of parts.
        """
        assert not tokenize, "the engine tokenizes"
        problem = "leaves out the question"
        for form in (_as_text, _as_parts):
            try:
                prompt = self.tokenizer.apply_chat_template(
                    [{**message, "content": form(message["content"])} for message in messages],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            except Exception as error:  # whatever a template raises
                problem = f"fails ({reason_of(error)})"
                continue
            if all(holds(prompt, message["content"]) for message in messages) and not _shows_parts(prompt, messages):
                return prompt.removeprefix(self.added)
        raise InputError(
            f"the tokenizer's chat template {problem}; name another with --chat_template: {', '.join(TEMPLATES)}"
        )


def _shows_parts(prompt: str, messages: Sequence[Mapping[str, str]]) -> bool:
    """Whether a template has printed a list of parts as Python or JSON would, instead of the text in it."""
    marks = ("'type': 'text'", '"type": "text"')
    return any(mark in prompt and not any(mark in message["content"] for message in messages) for mark in marks)


def _as_text(content: str) -> str:
    return content


def _as_parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]
