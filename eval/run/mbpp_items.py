"""Which of MBPP's files is scored, and its items: EvalPlus' file, Google's public one, or the sanitized one."""

import contextlib
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path

from eval.run.data import Items, Source, load_items
from eval.run.options import Options
from impart.errors import InputError
from impart.records import read_records

log = logging.getLogger(__name__)

EVALPLUS = Source(
    "mbpp",
    "MbppPlus.jsonl",
    {
        "task_id": str,
        "prompt": str,
        "entry_point": str,
        "canonical_solution": str,
        "base_input": list,
        "plus_input": list,
        "atol": float,
        "contract": object,
    },
    id_field="task_id",
)
PUBLIC = Source(
    "mbpp_public",
    "mbpp.jsonl",
    {"task_id": int, "text": str, "test_list": list},
    id_field="task_id",
    optional={"test_setup_code": str},
)
SANITIZED = Source(
    "mbpp_sanitized",
    "mbpp_sanitized.json",
    {"task_id": int, "prompt": str, "test_list": list},
    id_field="task_id",
    optional={"test_imports": list},
)
TEST_SPLIT = [str(number) for number in range(11, 511)]


def chosen_file(options: Options) -> tuple[Source, Path | None]:
    """Which of the sets, and its file; None where EvalPlus has to bring its own."""
    given = options.data or (Path(os.environ["MBPP_OVERRIDE_PATH"]) if os.environ.get("MBPP_OVERRIDE_PATH") else None)
    if given is not None and not given.is_dir():
        if not given.is_file():
            raise InputError(f"{given}: no such file; MBPP is EvalPlus' MbppPlus.jsonl or the public mbpp.jsonl")
        return kind_of(given), given
    folder = given or (Path(os.environ["IMPART_DATA"]) if os.environ.get("IMPART_DATA") else None)
    if folder is None or (folder / EVALPLUS.file).is_file():
        return EVALPLUS, folder and folder / EVALPLUS.file
    if not evalplus_cache().is_file() and (folder / PUBLIC.file).is_file():
        log.warning(
            "EvalPlus' %s is neither in %s nor in its cache; scoring the public file there instead, which is "
            "another set: the result is called mbpp_public",
            EVALPLUS.file,
            folder,
        )
        return PUBLIC, folder / PUBLIC.file
    return EVALPLUS, None


def kind_of(path: Path) -> Source:
    """The set that a file holds, by the fields of its first item."""
    first = next(iter(read_records(path)), (None, {}))[1]
    for mark, source in (
        ("base_input", EVALPLUS),
        ("text", PUBLIC),
        ("test_imports", SANITIZED),
        ("test_list", PUBLIC),
    ):
        if mark in first:
            return source
    raise InputError(
        f"{path}, line 1: neither 'base_input' (EvalPlus' MbppPlus.jsonl) nor 'test_list' (the public "
        f"mbpp.jsonl) is among its fields: {', '.join(first) or 'none'}"
    )


def evalplus_cache() -> Path:
    from evalplus.data.mbpp import MBPP_PLUS_VERSION
    from evalplus.data.utils import CACHE_DIR

    return Path(CACHE_DIR) / f"MbppPlus-{MBPP_PLUS_VERSION}.jsonl"


def evalplus_items(path: Path | None, options: Options) -> tuple[Items, dict[str, dict]]:
    """The chosen items as they stand in EvalPlus' file, and all of its problems as EvalPlus itself reads them."""
    from evalplus.data import mbpp as data

    if path is None:
        path = evalplus_cache()
        if not path.is_file():
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    data.get_mbpp_plus()  # downloads into that place
            except OSError as error:
                raise InputError(
                    f"EvalPlus' MBPP file cannot be downloaded ({error}); give it as --data MbppPlus.jsonl or "
                    "MBPP_OVERRIDE_PATH, or score the public set with --data mbpp.jsonl"
                ) from error
    if path.suffix == ".gz":
        raise InputError(f"{path}: unpack it first (gunzip); EvalPlus reads the plain MbppPlus.jsonl")
    items = load_items(EVALPLUS, path, options.limit, options.subset)
    data.MBPP_OVERRIDE_PATH = str(path)
    return items, data.get_mbpp_plus()


def public_items(source: Source, path: Path, options: Options) -> Items:
    """The chosen public items with one set of field names; without --subset the test split of a whole file."""
    items = load_items(source, path, None, options.subset)
    if not options.subset and {item["id"] for item in items.items} > set(TEST_SPLIT):
        items = load_items(source, path, options.limit, ",".join(TEST_SPLIT))
    renamed = [
        {
            **item,
            "text": item.get("text", item.get("prompt")),
            "test_setup_code": item.get("test_setup_code", "\n".join(item.get("test_imports", []))),
        }
        for item in items.items[: options.limit]
    ]
    return replace(items, items=renamed)
