"""What was made by which settings: nothing that other settings made is taken for this table's.

`RUNS/<pair>/.made_by/<name>` holds what decides the delta, model or results of that name, as JSON.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impart.errors import InputError
from impart.files import write_atomically


def check_made_by(runs: Path, made_by: Mapping[tuple[str, str], Mapping[str, Any]], *, write: bool) -> None:
    """InputError for whatever other settings made; notes down what is planned unless `write` is off."""
    for (pair, name), decides in made_by.items():
        file, now = runs / pair / ".made_by" / name, json.loads(json.dumps(decides, default=str))
        before = _read(file)
        if before == now:
            continue
        if before is not None and _is_made(runs / pair, name):
            raise InputError(
                f"{runs / pair / name} and its results ({runs / pair}/results_*/{name}) were made with other settings "
                f"({_changes(before, now)}); remove them, or set RUNS to another folder"
            )
        if write:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, (json.dumps(now, indent=1) + "\n").encode())


def _read(file: Path) -> dict[str, Any] | None:
    """What was noted down; None for nothing, and for notes of an earlier form."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _is_made(folder: Path, name: str) -> bool:
    return (folder / name).exists() or any(folder.glob(f"results_*/{name}"))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first two settings that differ: `C was 1.0, is 0.5`."""
    keys = [key for key in dict.fromkeys([*now, *before]) if before.get(key) != now.get(key)]
    return ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in keys[:2])
