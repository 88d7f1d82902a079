"""Rows of a table as the planner reads them: configs/rows/<row>.yaml beside the pair's file."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impart.config import keys_of, read_layers
from impart.errors import InputError
from impart.method import Method
from impart.pair import Pair, pair_file, value_text
from merge.settings import load_config as load_merge
from merge.settings import resolve
from sparsify.settings import FACES

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
NOMINAL_SIZE = 1024  # of a square matrix, where the pair does not say its width
RATIO_KEYS = {face: cls.ratio_key for face, cls in FACES.items()}


def row_file(row: str) -> Path:
    """configs/rows/<row>.yaml, relative to the repository, from which every step runs."""
    file = Path("configs") / "rows" / f"{row}.yaml"
    if not (ROOT / file).is_file():
        raise InputError(f"there is no {file}; a row of a table is a YAML file there, with a method and a label")
    return file


def row_content(row: str) -> dict[str, Any]:
    """What a row's file says; InputError for a file that is no mapping in YAML."""
    return read_layers(ROOT / row_file(row))[0].values


def needs_information(row: str) -> bool:
    """Whether a row reads a file of quantize/information.py, which is made once for a pair."""
    return bool(row_content(row).get("needs_information", False))


def given_label(row: str) -> str:
    """What a row is called in tables; its name, said in the log, where its file does not tell."""
    file = ROOT / "configs" / "rows" / f"{row}.yaml"
    label = row_content(row).get("label") if file.is_file() else None
    if file.is_file() and label is None:
        log.warning("note: configs/rows/%s.yaml has no label; the table calls the row %r", row, row)
    return str(label or row)


def row_files(pair: str, row: str) -> list[str]:
    """The YAML files of a row for a pair, as absolute paths."""
    return [str(ROOT / row_file(row)), str(ROOT / pair_file(pair))]


def configs(pair: str, row: str) -> tuple[str, ...]:
    """The same as flags."""
    return "--config", str(row_file(row)), "--config", str(relative(pair_file(pair)))


def relative(file: Path) -> Path:
    """A file of the repository by its path below it."""
    return file.relative_to(ROOT) if file.is_relative_to(ROOT) else file


def settings_in_name(pair: Pair, row: str, method: Method, settings: Mapping[str, Any]) -> str:
    """The part of a delta's name that tells settings apart: _beta0.8_C0.5. What the row fixes is in its name."""
    fixed, keys = row_content(row), keys_of(type(method))
    of_pair = {
        field.name: getattr(pair, field.name)
        for field in dataclasses.fields(Pair)
        if field.name in keys and field.name not in RATIO_KEYS.values() and field.name not in fixed
    }
    chosen = {**of_pair, **settings}
    return "".join(f"_{short(keys, key)}{_in_name(value)}" for key, value in chosen.items())


def _in_name(value: Any) -> str:
    """A setting as the name of a folder has it; the words of a list with + between them."""
    words = isinstance(value, list) and all(isinstance(word, str) for word in value)
    return "+".join(value) if words else value_text(value)


def short(keys: Mapping[str, dataclasses.Field], key: str) -> str:
    """A key's own short name where it has one: beta of preprune_ratio."""
    aliases = keys[key].metadata["aliases"] if key in keys else ()
    return aliases[0] if aliases else key


def facts(pair: Pair, method: Method, seed: int) -> dict[str, Any]:
    """What decides the bytes of a delta: models, method, its settings, and the seed where there is chance."""
    models = {"base_model": pair.base_model, "ftm_dir": pair.ftm_dir}
    return {**models, "method": method.name, **method.settings(), **({"seed": seed} if method.seeded else {})}


def check_mergeable(name: str, words: Sequence[str], size: int) -> None:
    """InputError for settings of a merge that merge.py would refuse, and for masks that a square matrix cannot meet."""
    _, entries = resolve(load_merge([str(ROOT / pair_file(name))], {}, [], [*words, "save_pth=x"]))
    for entry in entries:
        if entry.premask:
            entry.premask.check(f"{pair_file(name)} with {' '.join(words)}: a matrix", (size, size))
