"""What transformers makes of a model's folder, and whether code that lies there may run.

That code is a stranger's. It runs where the command line says --trust_remote_code, and nobody is ever asked. The
answer stands in the environment, from which the processes of an engine or a launcher have it as well.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from impart.errors import InputError, reason_of

TRUST = "IMPART_TRUST_REMOTE_CODE"


class _Trust(argparse.Action):
    def __call__(self, *_: Any) -> None:
        os.environ[TRUST] = "1"


def add_trust_flag(parser: argparse.ArgumentParser) -> None:
    """--trust_remote_code."""
    parser.add_argument(
        "--trust_remote_code",
        "--trust-remote-code",
        action=_Trust,
        nargs=0,
        help=f"run Python code that the model's folder brings, if it has a class of its own (or {TRUST}=1)",
    )


def trusted() -> bool:
    """Whether a model's own code may run."""
    return os.environ.get(TRUST) == "1"


def load_pretrained(loader: Any, folder: str | Path, *, what: str, source: str = "", **options: Any) -> Any:
    """`loader.from_pretrained(folder)`, loader being one of transformers' Auto classes.

    InputError when it fails. what: is loaded, in messages: "config"; source: how they call the model.
    """
    try:
        return loader.from_pretrained(folder, trust_remote_code=trusted(), **options)
    except Exception as error:  # its many classes raise as many kinds of errors
        reason = f"model {source or str(folder)!r}: its {what} cannot be loaded"
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{reason} without running code that its folder brings (auto_map); read that code, and add "
                "--trust_remote_code if you trust it"
            ) from error
        raise InputError(f"{reason} ({reason_of(error)}){_remedy(Path(folder), what)}") from error


def load_model(folder: str | Path, source: str = "", **options: Any) -> Any:
    """The causal language model with all of its weights; InputError where some are missing, which would be random."""
    from transformers import AutoModelForCausalLM  # seconds of import

    model, found = load_pretrained(
        AutoModelForCausalLM, folder, what="model", source=source, output_loading_info=True, **options
    )
    refuse_missing(found["missing_keys"], source or str(folder), model)
    return model


def refuse_missing(missing: Iterable[str], source: str, model: Any) -> None:
    """InputError where a model was loaded without some of its weights, which then are random."""
    names = sorted(missing)
    if names:
        raise InputError(
            f"model {source!r} lacks the weights of {len(names)} parameters of its class {type(model).__name__}, "
            f"the first {names[0]}; are its tensors called otherwise, or is it only a part?"
        )


def _remedy(folder: Path, what: str) -> str:
    if what != "tokenizer":
        return "; is it whole, and an architecture that this transformers has?"
    if not (folder / "tokenizer.json").is_file():
        return "; without a tokenizer.json it needs the packages sentencepiece and protobuf"
    return "; fetch it again"
