"""Records from files: `.jsonl` (an object a line), `.jsonl.gz`, or `.json` (an array of objects)."""

import gzip
import json
import logging
import zlib
from pathlib import Path
from typing import Any

from impart.errors import InputError, reason_of

log = logging.getLogger(__name__)


def read_records(path: Path, *, drop_torn: bool = False, remedy: str = "") -> list[tuple[str, dict]]:
    """(place, object) of every record, the place in words: "line 3". InputError where the file or a record is broken.

    drop_torn: leave out a last line without a line break, which a killed process leaves. remedy: what the message of
    an error ends in.
    """
    tail, text = f"; {remedy}" if remedy else "", read_text(path, remedy)
    if path.name.removesuffix(".gz").endswith(".json"):
        records = [(f"item {number}", record) for number, record in enumerate(_array(text, path, tail), start=1)]
    else:
        complete, _, rest = text.rpartition("\n")
        if rest and drop_torn:
            log.warning("%s: the last line is truncated and dropped", path)
            text = complete
        # Split at newlines only: str.splitlines would also cut at U+2028 and its like, which JSON texts may hold.
        lines = enumerate(text.split("\n"), start=1)
        records = [(f"line {number}", _parsed(line, path, number, tail)) for number, line in lines if line.strip()]
    for where, record in records:
        if not isinstance(record, dict):
            raise InputError(f"{path}, {where}: a mapping of fields is wanted, not {type(record).__name__}{tail}")
    return records


def read_text(path: Path, remedy: str = "") -> str:
    """A text file in UTF-8, unpacked if its name ends in .gz; InputError where it cannot be read."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig")  # some editors put a byte-order mark first
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error})" + (f"; {remedy}" if remedy else "")) from error


def _array(text: str, path: Path, tail: str) -> list:
    value = _parsed(text, path, None, tail)
    if not isinstance(value, list):
        raise InputError(f"{path}: a .json file must hold one array of items; one object a line is .jsonl{tail}")
    return value


def _parsed(text: str, path: Path, line: int | None, tail: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {line or error.lineno}: not valid JSON ({error.msg}){tail}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of open brackets
        place = f", line {line}" if line else ""
        raise InputError(f"{path}{place}: JSON beyond what Python reads ({reason_of(error)}){tail}") from error
