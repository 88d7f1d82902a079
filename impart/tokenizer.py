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
    folder, source = Path(folder), source or str(folder)
    if (settings := folder / "tokenizer_config.json").is_file():
        read_json(settings, source)
    if not (folder / "tokenizer.json").is_file():
        os.environ.setdefault(OLD_PROTOBUF, "true")
    tokenizer = load_pretrained(_loader(folder), folder, what="tokenizer", source=source)
    try:
        tokenizer("a")
    except Exception as error:  # some settings are only looked at when they are used
        raise InputError(f"model {source!r}: its tokenizer fails ({reason_of(error)}); fetch it again") from error
    return tokenizer


def _loader(folder: Path) -> Any:
    """transformers' AutoTokenizer; BERT's for a vocab.txt, a token a line, of a model that does not say its type."""
    from transformers import AutoTokenizer, BertTokenizer  # seconds of import that most commands do without

    files = [folder / name for name in ("config.json", "tokenizer_config.json") if (folder / name).is_file()]
    stated = {key for file in files for key in read_json(file, str(folder))} & {"model_type", "tokenizer_class"}
    untyped = not stated and (folder / "vocab.txt").is_file() and not (folder / "tokenizer.json").is_file()
    return BertTokenizer if untyped else AutoTokenizer
