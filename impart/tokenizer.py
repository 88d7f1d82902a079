"""A model's tokenizer, as transformers loads it."""

from pathlib import Path
from typing import Any

from impart.errors import InputError, reason_of


def load_tokenizer(folder: str | Path, source: str | None = None) -> Any:
    """The tokenizer in a model's folder; InputError when it cannot be loaded. `source`: how messages call it."""
    from transformers import AutoTokenizer  # seconds of import that most commands do without

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # its many tokenizer classes raise as many kinds of errors
        remedy = (
            "fetch it again"
            if (Path(folder) / "tokenizer.json").is_file()
            else "without a tokenizer.json it needs the packages sentencepiece and protobuf, in versions that fit"
        )
        raise InputError(
            f"model {source or str(folder)!r}: its tokenizer cannot be loaded ({reason_of(error)}); {remedy}"
        ) from error
