"""Benchmark items from `--data FILE`, from the folder in IMPART_DATA, or from the hub, with all fields checked.

Local files are in the benchmarks' public formats: `.jsonl` (one object a line), `.jsonl.gz` or `.json` (one array).
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impart.errors import InputError
from impart.hub import fetch_file, load_rows
from impart.records import read_records

log = logging.getLogger(__name__)

TINY_DATA = Path(__file__).resolve().parents[2] / "assets" / "tiny" / "data"  # items of the tiny and the small pair
KINDS = {str: "text", int: "a whole number", float: "a number", list: "a list", dict: "a mapping"}


@dataclass(frozen=True)
class Source:
    """Where the items of one benchmark are, and which fields each of them must have."""

    benchmark: str  # its name in messages: "gsm8k"
    file: str  # the file looked for in IMPART_DATA: "gsm8k_test.jsonl"
    fields: Mapping[str, type]  # required fields and their types
    hub: tuple[str, str | None, str] | None = None  # (data set, configuration, split); None: local files only
    id_field: str | None = None  # field that names an item; None: its position, from 0
    optional: Mapping[str, type] = field(default_factory=dict)  # fields that may be absent, but not of another type
    hub_file: str | None = None  # the data set's file with the items; None: load_dataset reads it


@dataclass(frozen=True)
class Items:
    """The chosen items, in the order of the file. Every item has its original fields and "id" (text)."""

    items: list[dict]
    origin: str  # file or hub name they came from
    sha256: str  # of the chosen items' content: part of a result's settings
    total: int  # items in the whole file


def load_items(source: Source, data: Path | None = None, limit: int | None = None, subset: str | None = None) -> Items:
    """The items of a benchmark: `--data`, else IMPART_DATA, else the hub; then `--subset`, then `--limit`.

    subset: comma-separated item ids, position ranges FIRST-LAST (from 0, both included) and FIELD=VALUE conditions;
    an item is chosen when any of them names it. InputError for items that cannot be read, lack a field or share an id.
    """
    path = find_file(source, data)
    records, origin = (read_records(path), str(path)) if path else _from_hub(source)
    if not records:
        raise InputError(f"{origin} holds no items; {source.benchmark} needs at least one")
    items = [
        _checked(record, position, source, f"{origin}, {where}") for position, (where, record) in enumerate(records)
    ]
    _check_unique(items, origin)
    chosen = select(items, subset) if subset else items
    chosen = chosen[:limit]
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
    return Items(chosen, origin, digest, len(items))


def find_file(source: Source, data: Path | None = None) -> Path | None:
    """The local file with the items, None where the hub has to be asked. `data` may be a file or a folder."""
    if data is not None:
        path = data / source.file if data.is_dir() else data
        if not path.is_file():
            raise InputError(f"--data {data}: no such file; {source.benchmark} reads a file like {source.file}")
        return path
    folder = os.environ.get("IMPART_DATA")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise InputError(f"IMPART_DATA={folder} is not a folder; set it to the one that holds {source.file}")
    path = Path(folder) / source.file
    if path.is_file():
        return path
    log.info("IMPART_DATA=%s has no %s; asking the hub", folder, source.file)
    return None


def select(items: list[dict], subset: str) -> list[dict]:
    """The items that --subset names, in the order of the file. InputError for a part of it that names none."""
    chosen: set[int] = set()
    by_id = {item["id"]: position for position, item in enumerate(items)}
    for part in (text.strip() for text in subset.split(",")):
        first, dash, last = part.partition("-")
        name, equals, value = part.partition("=")
        if part in by_id:
            found = {by_id[part]}
        elif dash and first.isdecimal() and last.isdecimal():
            found = set(range(int(first), min(int(last) + 1, len(items))))
        elif equals:
            found = {position for position, item in enumerate(items) if str(item.get(name)) == value}
        else:
            found = set()
        if not found:
            raise InputError(
                f"--subset {part!r} names none of the {len(items)} items; write item ids (the first is "
                f"{items[0]['id']!r}), positions as FIRST-LAST, or FIELD=VALUE"
            )
        chosen |= found
    return [items[position] for position in sorted(chosen)]


def completions_from(path: Path, ids: Collection[str], *, several: bool = False) -> list[tuple[str, str]]:
    """(item id, completion) of each line of a jsonl file with the fields `completion` and `id` (or `task_id`).

    ids: of the benchmark's items. several: whether an item may have more than one completion. InputError for another
    id, a missing field, or a file without lines.
    """
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    for where, record in read_records(path):
        field = "task_id" if "task_id" in record and "id" not in record else "id"
        key, text = record.get(field), record.get("completion")
        if not isinstance(key, str | int):
            raise InputError(f"{path}, {where}: field 'id' (or 'task_id') is missing or no text")
        if str(key) not in ids:
            raise InputError(
                f"{path}, {where}: {field} {key!r} is none of the {len(ids)} items (the first is {next(iter(ids))!r})"
            )
        if not isinstance(text, str):
            raise InputError(f"{path}, {where}: field 'completion' is missing or no text")
        if str(key) in seen and not several:
            raise InputError(f"{path}, {where}: a second completion of {key!r}; one of each item is scored")
        seen.add(str(key))
        found.append((str(key), text))
    if not found:
        raise InputError(f"{path} holds no completions")
    return found


def _from_hub(source: Source) -> tuple[list[tuple[str, dict]], str]:
    """The records, and where they came from."""
    remedy = f"give --data FILE, or set IMPART_DATA to a folder with {source.file}"
    if source.hub is None:
        raise InputError(f"{source.benchmark} is not on the hub; {remedy}")
    repository, configuration, split = source.hub
    if source.hub_file:
        file = fetch_file(repository, source.hub_file, kind="dataset", what=source.benchmark, remedy=remedy)
        return read_records(file), f"hub:{repository}"
    table = load_rows(repository, name=configuration, split=split, what=source.benchmark, remedy=remedy)
    return [(f"row {position}", dict(row)) for position, row in enumerate(table)], f"hub:{repository}"


def _checked(record: dict, position: int, source: Source, where: str) -> dict:
    item = dict(record)
    for name, kind in {**source.fields, **source.optional}.items():
        if name not in item:
            if name in source.optional:
                continue
            raise InputError(f"{where}: field {name!r} is missing; {source.benchmark} needs {', '.join(source.fields)}")
        if not _fits(item[name], kind):
            raise InputError(
                f"{where}: field {name!r} is {type(item[name]).__name__}, but {source.benchmark} needs "
                f"{KINDS.get(kind, kind.__name__)}"
            )
    item["id"] = str(item[source.id_field]) if source.id_field else str(position)
    return item


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def _check_unique(items: list[dict], origin: str) -> None:
    seen: set[str] = set()
    for item in items:
        if item["id"] in seen:
            raise InputError(f"{origin}: two items have the id {item['id']!r}; ids must differ")
        seen.add(item["id"])
