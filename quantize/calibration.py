"""Calibration text: token sequences of one length, picked by a seed from a hub data set or a local file.

c4          English C4 (hub): random windows of documents longer than a sequence, as GPTQ takes them
wikitext2   WikiText-2 raw, training part (hub)
a file      .txt, or .jsonl / .json with a text field per line or item

wikitext2 and files: the documents in an order drawn by the seed, one after another, are cut into windows, of which the
seed draws as many as are wanted.
"""

import hashlib
import random
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impart.checkpoint import Checkpoint
from impart.errors import InputError
from impart.files import user_path
from impart.hub import load_rows
from impart.records import read_records, read_text
from impart.tokenizer import load_tokenizer
from quantize.settings import Config

SPARE = 8  # a local text is tokenized up to this many times the tokens that are needed
HUB: dict[str, tuple[str, dict[str, Any]]] = {
    "c4": ("allenai/c4", {"data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}}),
    "wikitext2": ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1"}),
}

Tokenize = Callable[[str], Sequence[int]]


def calibration_sequences(
    source: str, tokenize: Tokenize, *, count: int, length: int, seed: int, text_field: str = "text"
) -> Tensor:
    """Token ids (count, length), int64. The same arguments give the same tokens."""
    documents = documents_of(source, text_field)
    if source == "c4":
        return windows_of_documents(documents, tokenize, count=count, length=length, seed=seed, source=source)
    return windows_of_text(documents, tokenize, count=count, length=length, seed=seed, source=source)


@dataclass(frozen=True)
class Text:
    """Calibration text as a method gets it."""

    config: Config
    sequences: Tensor  # (nsamples, seqlen)

    def settings(self) -> dict[str, Any]:
        """What delta.json says of the text."""
        keys = {key: getattr(self.config, key) for key in ("nsamples", "seqlen", "batch")}
        return {**keys, "calibration_tokens": digest(self.sequences)}


TEXT_KEYS = ("text_field", "nsamples", "seqlen")  # of the settings, which are flags where there are no others


def add_text_flags(parser: ArgumentParser) -> None:
    """The flags of scripts that have no settings but those of the text."""
    parser.add_argument("--text_field", default="text", help="field of a .jsonl or .json file (default: %(default)s)")
    parser.add_argument("--nsamples", type=int, default=32, help="sequences (default: %(default)s)")
    parser.add_argument("--seqlen", type=int, default=128, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides which sequences (default: %(default)s)")


def text_config(given: Namespace) -> Config:
    """What these flags say; InputError for no sequence, and for one without a token to predict."""
    if given.nsamples < 1 or given.seqlen < 2 or given.seed < 0:
        raise InputError("--nsamples must be at least 1, --seqlen at least 2, and --seed at least 0")
    return Config(text_field=given.text_field, nsamples=given.nsamples, seqlen=given.seqlen, seed=given.seed)


def model_tokens(dataset: str, config: Config, finetuned: Checkpoint) -> Tensor:
    """Token ids (nsamples, seqlen), checked against what the model takes."""
    positions = finetuned.config.get("max_position_embeddings")
    if positions is not None and config.seqlen > positions:
        raise InputError(
            f"seqlen={config.seqlen} is more than the {positions} positions of {finetuned.source!r}; lower it"
        )
    tokenizer = load_tokenizer(finetuned.path, finetuned.source)
    sequences = calibration_sequences(
        dataset,
        lambda text: tokenizer(text, verbose=False)["input_ids"],
        count=config.nsamples,
        length=config.seqlen,
        seed=config.seed,
        text_field=config.text_field,
    )
    rows = finetuned.config.get("vocab_size")
    if rows is not None and int(sequences.max()) >= rows:
        raise InputError(
            f"the tokenizer of {finetuned.source!r} gives token {int(sequences.max())}, but the model has "
            f"{rows} embeddings; is it the right tokenizer?"
        )
    return sequences


def digest(sequences: Tensor) -> str:
    """A short hash of the tokens: with it a result says what it was calibrated on."""
    return hashlib.sha256(sequences.numpy().tobytes()).hexdigest()[:16]


def documents_of(source: str, text_field: str = "text") -> Sequence[str]:
    """The documents of a named data set or of a local file."""
    path = text_file(source)
    if path is None:
        return _hub_documents(source)
    if path.suffix == ".txt":
        return [read_text(path, "save it as UTF-8 text")]
    records = read_records(path)
    for place, record in records:
        if not isinstance(record.get(text_field), str):
            raise InputError(
                f"{path}, {place}: there is no text in a field {text_field!r}; name the field by text_field=..."
            )
    return [record[text_field] for _, record in records]


def text_file(source: str) -> Path | None:
    """The local file of that name, None for a data set of the hub; InputError for anything else. Reads nothing."""
    path = user_path(source)
    if not path.is_file():
        if source in HUB:
            return None
        raise InputError(f"calibration text {source!r} is neither a file nor one of {', '.join(HUB)}")
    if path.suffix not in (".txt", ".jsonl", ".json"):
        raise InputError(f"calibration file {str(path)!r} must end in .txt, .jsonl or .json")
    return path


def windows_of_documents(
    documents: Sequence[str], tokenize: Tokenize, *, count: int, length: int, seed: int, source: str
) -> Tensor:
    """One random window from each of `count` documents, drawn by the seed, that are longer than a sequence."""
    draw, windows, tried = random.Random(seed), [], 0
    order = list(range(len(documents)))
    draw.shuffle(order)
    for index in order:
        ids = tokenize(documents[index])
        tried += 1
        if len(ids) > length:
            start = draw.randrange(len(ids) - length)
            windows.append(torch.tensor(ids[start : start + length], dtype=torch.long))
        if len(windows) == count:
            return torch.stack(windows)
    raise InputError(
        f"calibration text {source!r} has {len(windows)} documents of more than {length} tokens among {tried}, "
        f"and {count} were wanted; take fewer sequences (nsamples) or shorter ones (seqlen)"
    )


def windows_of_text(
    documents: Sequence[str], tokenize: Tokenize, *, count: int, length: int, seed: int, source: str
) -> Tensor:
    """`count` of the windows of the documents joined in an order drawn by the seed; no two overlap."""
    draw = random.Random(seed)
    tokens: list[int] = []
    order = list(range(len(documents)))
    draw.shuffle(order)
    for index in order:
        tokens.extend(tokenize(documents[index]))
        if len(tokens) >= SPARE * count * length:
            break
    available = len(tokens) // length
    if available < count:
        raise InputError(
            f"calibration text {source!r} is too short: {len(tokens)} tokens, but {count} sequences of {length} "
            f"need {count * length}; give more text, or lower nsamples or seqlen"
        )
    chosen = draw.sample(range(available), count)
    return torch.stack([torch.tensor(tokens[i * length : (i + 1) * length], dtype=torch.long) for i in chosen])


def _hub_documents(source: str) -> Sequence[str]:
    repository, options = HUB[source]
    rows = load_rows(
        repository,
        split="train",
        what=f"calibration text {source!r}",
        remedy="name a local .txt or .jsonl file instead",
        **options,
    )
    texts = rows["text"]
    return texts if source == "c4" else ["".join(texts)]
