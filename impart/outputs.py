"""The folder that a run writes: what it may replace, who else is writing it, and how it gets its name.

A run replaces only what this suite made: a delta (it has a delta.json), or a checkpoint (it has `MARKER`). Everything
grows in `NAME.partial` and is renamed when it is whole; from the first byte to the rename one process holds a lock
beside it.
"""

import atexit
import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from impart.errors import InputError
from impart.files import replace_folder, user_path
from impart.weight_files import read_json

log = logging.getLogger(__name__)

MARKER = ".made_by_impart"  # an empty file in checkpoints that this suite wrote
MANIFEST = "delta.json"
OURS = (MARKER, MANIFEST, "report.json")  # any of them says that the folder is one of ours


def refuse_existing(path: Path, overwrite: bool, inputs: Iterable[str | Path | None] = ()) -> None:
    """InputError when `path` exists and may not be replaced, or cannot be made.

    `inputs` are the models and deltas that the run reads: no output may replace one, or a folder that holds one.
    """
    path = user_path(path)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{str(path)!r} is no UTF-8 text, which delta.json could not name; take another name"
        ) from error
    if "\0" in str(path):
        raise InputError(f"{str(path)!r} holds a NUL character; take another name")
    for given in inputs:
        source = user_path(given) if given else None
        if source is not None and source.exists() and source.resolve().is_relative_to(path.resolve()):
            raise InputError(f"{str(path)!r} is or holds {str(source)!r}, which this run reads; name another folder")
    if path.exists() and not overwrite:
        raise InputError(f"{str(path)!r} exists; name another folder, or add --overwrite to replace it")
    if not path.name or path.name == "..":
        raise InputError(f"{str(path)!r} is no name for a new folder; name one below it")
    foreign = _first_foreign(path) if path.exists() else None
    if foreign is not None:
        raise InputError(
            f"{str(path)!r} holds {foreign!r}, which this suite did not make; --overwrite replaces deltas and "
            "checkpoints of its own alone: name another folder, or move that one away"
        )
    check_writable(path)


def is_skipped(path: str | Path, skip_existing: bool, **wanted: object) -> bool:
    """Whether `--skip_existing` finds a result of this suite at `path`, and nothing is left to do.

    `wanted` is what its delta.json has to say where it is a delta: InputError where it was made otherwise.
    """
    path = user_path(path)
    if not skip_existing or not path.exists() or _first_foreign(path) is not None:
        return False
    if (path / MANIFEST).is_file():
        made = read_json(path / MANIFEST, f"delta {str(path)!r}")
        for key, value in wanted.items():
            if made.get(key) != json.loads(json.dumps(value)):
                raise InputError(
                    f"{str(path)!r} is there and was made otherwise ({key}: {made.get(key)!r} instead of {value!r}); "
                    "name another folder, or take --overwrite instead of --skip_existing"
                )
    log.info("%s is there: nothing to do (--skip_existing)", path)
    return True


def check_writable(path: Path) -> None:
    """InputError when nothing can be made at `path`."""
    above = next(folder for folder in user_path(path).absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(
            f"{str(path)!r} cannot be made, because {str(above)!r} is not a folder that you may write to; "
            "name another place"
        )


def _first_foreign(path: Path) -> str | None:
    """What tells that `path` is not a result of this suite: itself, where it is no folder, or its first entry."""
    if not path.is_dir():
        return path.name
    names = sorted(entry.name for entry in path.iterdir())
    return None if not names or any(name in names for name in OURS) else names[0]


class Output:
    """One output under way: a lock on it, and `partial`, the folder in which it grows."""

    def __init__(self, path: Path):
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.lock_file = path.with_name(f".{path.name}.lock")

    def hold(self) -> None:
        """Takes the lock; InputError where another process has it. It ends with this process at the latest.

        A second writer in one process takes the lock over: it comes after an error of the first.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self.lock_file not in _HELD:
            lock = self.lock_file.open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise InputError(
                    f"another run is writing {str(self.path)!r}; wait for it to end, or name another folder"
                ) from None
            if self.lock_file.exists() and os.path.samestat(os.fstat(lock.fileno()), self.lock_file.stat()):
                _HELD[self.lock_file] = lock
            else:
                lock.close()  # the run that held it removed the file in between

    @contextlib.contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Holds the lock on, unless what is done here fails."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def refuse_foreign_partial(self, ours: bool) -> None:
        """InputError when a partial folder is there that no run of this suite left."""
        if self.partial.exists() and not ours and (not self.partial.is_dir() or any(self.partial.iterdir())):
            raise InputError(
                f"{str(self.partial)!r} is needed for the growing result, but holds something else; move it away"
            )

    def clear(self) -> None:
        """Removes the partial folder."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def publish(self) -> None:
        """Gives the finished folder its name, and releases the lock."""
        replace_folder(self.partial, self.path)
        self.release()

    def release(self) -> None:
        """Lets the next run write the output."""
        lock = _HELD.pop(self.lock_file, None)
        if lock is not None:
            self.lock_file.unlink(missing_ok=True)
            lock.close()


_HELD: dict[Path, TextIO] = {}  # lock files of this process


@atexit.register
def _release_all() -> None:
    for file, lock in _HELD.items():
        file.unlink(missing_ok=True)
        lock.close()
