"""Vocabularies that differ: rows of embedding and head are matched by token, never by position.

The merged model has the tokenizer of one of the models (the base unless said otherwise), to which the tokens that only
the others know are added. What a row means is its token; a row that no token of the tokenizer points to (padding to a
round number) is matched by its position among such rows.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impart.companions import copy_companion
from impart.errors import InputError
from impart.tokenizer import load_tokenizer
from impart.weight_files import read_json

log = logging.getLogger(__name__)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
LEAST_SHARED = 0.9  # of the smaller vocabulary's tokens; below, the tokenizers are two different ones
MISSING = -1


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokens with their ids, and the number of rows of its embedding. `ids` is None without a tokenizer."""

    ids: Mapping[str, int] | None
    rows: int


@dataclass(frozen=True)
class Alignment:
    """Row numbers of the merged vocabulary in each model's own numbering.

    `maps[model]` (rows,): where each merged row stands in that model, MISSING where it has no such row; None where
    every row stands where it stood. `added`: tokens that the merged tokenizer has and its origin lacks, with their ids.
    """

    rows: int
    maps: dict[str, Tensor | None]
    added: dict[str, int]


def merge_vocabularies(
    small: Mapping[str, Sequence[Path]], rows: Mapping[str, int], origin: str, folder: Path
) -> Alignment | None:
    """The rows of the merged model, None when every row stays where it is.

    `small`: each model's small files; `rows`: of its embedding. A tokenizer to which tokens had to be added is written
    to `folder`.
    """
    if len(set(rows.values())) == 1 and len({tokenizer_digest(files) for files in small.values()}) == 1:
        return None
    found = {name: read_vocabulary(files, rows[name], name) for name, files in small.items()}
    vocabularies = comparable(found, origin)
    added = union(vocabularies, origin)
    alignment = align(vocabularies, origin, write_tokenizer(small, origin, added, folder) if added else {})
    moved = [name for name, places in alignment.maps.items() if places is not None]
    if moved:
        log.info(
            "vocabulary: %d rows; %d tokens added to the tokenizer of %s; rows matched by token in %s",
            alignment.rows,
            len(added),
            origin,
            ", ".join(moved),
        )
    return alignment if moved else None


def read_vocabulary(companions: Sequence[Path], rows: int, owner: str) -> Vocabulary:
    """The tokens of the tokenizer among a model's small files."""
    folders = [file.parent for file in companions if file.name in TOKENIZER_FILES]
    return Vocabulary(dict(load_tokenizer(folders[0], owner).get_vocab()) if folders else None, rows)


def tokenizer_digest(companions: Sequence[Path]) -> str:
    """Equal for two models whose tokens have equal ids for certain, which then need not be loaded."""
    digest = hashlib.sha256()
    for file in sorted(companions, key=lambda file: file.name):
        if file.name not in TOKENIZER_FILES:
            continue
        content = file.read_bytes()
        if file.name == "tokenizer_config.json":  # its other keys, a chat template say, move no token
            settings = read_json(file, "the tokenizer")
            content = json.dumps(
                {
                    key: value
                    for key, value in sorted(settings.items())
                    if key == "added_tokens_decoder" or key.endswith("_token")
                }
            ).encode()
        digest.update(file.name.encode() + b"\n" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def union(vocabularies: Mapping[str, Vocabulary], origin: str) -> list[str]:
    """Tokens that have a row in some model and are unknown to `origin`, by their smallest id anywhere and by string."""
    known = vocabularies[origin].ids or {}
    smallest: dict[str, int] = {}
    for vocabulary in vocabularies.values():
        for token, number in (vocabulary.ids or {}).items():
            if token not in known and number < vocabulary.rows:
                smallest[token] = min(number, smallest.get(token, number))
    return sorted(smallest, key=lambda token: (smallest[token], token))


def align(vocabularies: Mapping[str, Vocabulary], origin: str, added: Mapping[str, int]) -> Alignment:
    """Where each row of the merged vocabulary stands in every model.

    `added`: ids of the tokens of `union`, as the merged tokenizer gives them. Every model's rows are kept: the merged
    one has as many as the largest, and more if the added tokens need them.
    """
    start = vocabularies[origin]
    rows = max(max(vocabulary.rows for vocabulary in vocabularies.values()), max(added.values(), default=-1) + 1)
    keys: list[str | int] = list(range(rows))  # a token, or the position of a row without one
    for token, number in {**(start.ids or {}), **added}.items():
        if number < rows:
            keys[number] = token
    maps = {name: _row_map(keys, vocabulary) for name, vocabulary in vocabularies.items()}
    return Alignment(rows, maps, dict(added))


def comparable(vocabularies: Mapping[str, Vocabulary], origin: str) -> dict[str, Vocabulary]:
    """The vocabularies, where a model without a tokenizer gets the origin's ids (none if the origin has none either).

    InputError for such a model with another number of rows, and for tokenizers that share too few tokens.
    """
    start = vocabularies[origin]
    for name, vocabulary in vocabularies.items():
        if vocabulary.ids is None or start.ids is None:
            if vocabulary.rows != start.rows:
                bare = name if vocabulary.ids is None else origin
                raise InputError(
                    f"model {name!r} has {vocabulary.rows} token rows, {origin!r} has {start.rows}, and "
                    f"{bare!r} has no tokenizer that says which is which; put its tokenizer files there"
                )
            continue
        shared = len(vocabulary.ids.keys() & start.ids.keys())
        smaller = min(len(vocabulary.ids), len(start.ids))
        if shared < LEAST_SHARED * smaller:
            raise InputError(
                f"the tokenizers of {name!r} and {origin!r} share {shared} of {smaller} tokens; models "
                "with different tokenizers cannot be merged"
            )
    if start.ids is None:
        return {name: Vocabulary(None, start.rows) for name in vocabularies}
    return {name: vocabulary if vocabulary.ids is not None else start for name, vocabulary in vocabularies.items()}


def write_tokenizer(
    small: Mapping[str, Sequence[Path]], origin: str, added: Sequence[str], folder: Path
) -> dict[str, int]:
    """Saves the tokenizer of `origin` with `added` tokens into `folder`; returns their ids.

    A token keeps the properties (special, stripping, normalisation) that it has in the first model, by name, to know
    it as an added token.
    """
    loaded = {name: load_tokenizer(files[0].parent, name) for name, files in _tokenizer_files(small).items()}
    tokenizer = loaded[origin]
    properties: dict[str, Any] = {}  # token -> how the first model, by name, knows it
    for name in sorted(loaded):
        for token in loaded[name].added_tokens_decoder.values():
            properties.setdefault(token.content, token)
    plain = [token for token in added if token not in properties]
    if plain:
        log.warning(
            "warning: %d tokens of one model's vocabulary become added tokens of the merged tokenizer, "
            "among them %r: text is split at them wherever they occur",
            len(plain),
            plain[0],
        )
    for token in added:  # one by one: a call with several may order them by their properties
        known = properties.get(token, token)
        tokenizer.add_tokens([known], special_tokens=getattr(known, "special", False))
    tokenizer.save_pretrained(folder)
    ids = tokenizer.get_vocab()
    saved = load_tokenizer(folder).get_vocab()
    wrong = [token for token in added if token not in ids or saved.get(token) != ids[token]]
    if wrong:
        raise InputError(
            f"the tokenizer of {origin!r} does not take {wrong[0]!r} as an added token; name another "
            "model with the key tokenizer"
        )
    return {token: ids[token] for token in added}


def copy_companions(companions: Sequence[Path], folder: Path, with_tokenizer: bool) -> None:
    """The small files that belong to a model's tokenizer and generation config; not its model card and reports."""
    for file in companions:
        card = file.name.lower().startswith("readme") or file.name in ("report.json", "config.json")
        if not card and (with_tokenizer or file.name not in TOKENIZER_FILES):
            copy_companion(file, folder)


def _tokenizer_files(small: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    """Of the models that have a tokenizer, its files."""
    found = {name: [file for file in files if file.name in TOKENIZER_FILES] for name, files in small.items()}
    return {name: files for name, files in found.items() if files}


def _row_map(keys: Sequence[str | int], vocabulary: Vocabulary) -> Tensor | None:
    ids = vocabulary.ids or {}
    named = {number for number in ids.values() if number < vocabulary.rows}
    places = torch.full((len(keys),), MISSING, dtype=torch.long)
    for row, key in enumerate(keys):
        if isinstance(key, str):
            place = ids.get(key, MISSING)
            places[row] = place if place < vocabulary.rows else MISSING
        elif key < vocabulary.rows and key not in named:
            places[row] = key
    return None if len(keys) == vocabulary.rows and torch.equal(places, torch.arange(len(keys))) else places
