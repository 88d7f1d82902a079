"""The file that says what errors of each matrix cost: Fisher information by the matrices' names, from calibration text.

quantize/information.py writes it; methods with a key `information` divide the bytes of a model by it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impart.errors import InputError
from impart.files import sha256_of, user_path, write_atomically

KEY = "information"


def write_information(file: Path, information: Mapping[str, float], facts: Mapping[str, str | int]) -> None:
    """`facts`: of which model and text it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps({**facts, KEY: dict(information)}, indent=2) + "\n").encode())


def read_information(path: str) -> Mapping[str, float]:
    """F of each matrix; InputError for what is no such file."""
    try:
        found = json.loads(user_path(path).read_text())[KEY]
        if not found or not all(isinstance(F, float) and 0 <= F < float("inf") for F in found.values()):
            raise ValueError
    except OSError as error:
        raise InputError(f"information={path}: {error.strerror}; quantize/information.py writes such a file") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"information={path} has no information of matrices; quantize/information.py writes it"
        ) from error
    return found


def information_of(path: str, matrices: Sequence[str]) -> Mapping[str, float]:
    """F of these matrices; InputError where one of them is not in the file."""
    found = read_information(path)
    missing = next((name for name in matrices if name not in found), None)
    if missing:
        raise InputError(f"information={path} says nothing of {missing}; is it of another model?")
    return found


def said(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings as a delta says them: a hash of the file of `information`, where there is one."""
    path = settings[KEY]
    others = {key: value for key, value in settings.items() if key != KEY}
    return others if path is None else {**others, KEY: sha256_of(user_path(path))[:16]}
