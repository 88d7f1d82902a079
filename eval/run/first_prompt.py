"""A last look at what a model is asked, before anything is generated: the first prompt, as text and as token ids."""

import itertools
import logging
from collections.abc import Mapping
from typing import Any

from impart.errors import InputError

log = logging.getLogger(__name__)

SHOWN = 2000  # characters of the prompt that are logged


def check_first_prompt(item: Mapping[str, Any], prompt: str, tokenizer: Any, special_tokens: bool) -> None:
    """Logs the prompt; InputError where its item is not in it, or where it begins with two begin-of-sequence tokens.

    The item is in its prompt when one of its texts is, whatever became of spaces and line breaks.
    """
    ids = tokenizer(prompt, add_special_tokens=special_tokens)["input_ids"]
    begins = len(list(itertools.takewhile(lambda token: token == tokenizer.bos_token_id, ids)))
    where = f"the prompt of item {item['id']}"
    log.info(
        "%s: %d tokens, %d begin-of-sequence at the start (ids %s): %r",
        where,
        len(ids),
        begins,
        ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else ""),
        prompt[:SHOWN] + ("..." if len(prompt) > SHOWN else ""),
    )
    if begins > 1:
        raise InputError(
            f"{where} begins with {begins} begin-of-sequence tokens ({tokenizer.bos_token!r}): its template writes "
            "what the tokenizer adds; mend the template, or choose another with --chat_template"
        )
    asked = max((text for text in item.values() if isinstance(text, str) and holds(prompt, text)), key=len, default="")
    if not asked.strip() or asked == item["id"]:
        raise InputError(
            f"{where} holds none of its texts, so the model would answer nothing in particular: {prompt[:200]!r}; "
            "choose another template with --chat_template"
        )
    if not holds(_decoded(ids, tokenizer), asked):
        # Some tokenizers lose characters or their case; then nothing can be said about the prompt.
        if holds(_decoded(tokenizer(asked, add_special_tokens=False)["input_ids"], tokenizer), asked):
            raise InputError(f"{where} loses its item when the tokenizer reads it: {_decoded(ids, tokenizer)[:200]!r}")
        log.warning("%s: the tokenizer does not keep all of its characters", where)


def holds(text: str, part: str) -> bool:
    """Whether a text has a part, but for white space."""
    return "".join(part.split()) in "".join(text.split())


def _decoded(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
