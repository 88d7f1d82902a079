"""A model's tokenizer, as transformers loads it."""

import os
from pathlib import Path
from typing import Any

from impart.errors import InputError, reason_of
from impart.pretrained import load_pretrained
from impart.weight_files import read_json

# vLLM wants a protobuf that is older than the one with which sentencepiece generated its reader of tokenizer.model. The
# reader is a table of fields without any code, and works; protobuf refuses it by its version alone.
OLD_PROTOBUF = "TEMPORARILY_DISABLE_PROTOBUF_VERSION_CHECK"


def load_tokenizer(folder: str | Path, source: str | None = None) -> Any:
    """The tokenizer in a model's folder; InputError when it cannot be loaded. `source`: how messages call it."""
    from transformers import AutoTokenizer  # seconds of import that most commands do without

    folder, source = Path(folder), source or str(folder)
    if (settings := folder / "tokenizer_config.json").is_file():
        read_json(settings, source)
    if not (folder / "tokenizer.json").is_file():
        os.environ.setdefault(OLD_PROTOBUF, "true")
    tokenizer = load_pretrained(AutoTokenizer, folder, what="tokenizer", source=source)
    try:
        tokenizer("a")
    except Exception as error:  # some settings are only looked at when they are used
        raise InputError(f"model {source!r}: its tokenizer fails ({reason_of(error)}); fetch it again") from error
    return tokenizer
