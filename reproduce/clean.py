"""Removes the partial folders that killed runs leave behind.

    python reproduce/clean.py                lists them with their bytes; --yes removes them
    python reproduce/clean.py RUNS [...]     looks in these folders (default: runs)

A partial folder lets its run continue: remove it when that run will not come again. One that is being written is left.
"""

import fcntl
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

if not __package__:  # run as `python reproduce/clean.py`: import from the repository root, not from reproduce/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart.artifact_writer import PROGRESS
from impart.config import Parser
from impart.errors import InputError, run
from impart.files import user_path
from impart.outputs import MARKER, Output
from impart.report import table


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("folders", nargs="*", help="folders of results (default: runs)")
    parser.add_argument("--yes", action="store_true", help="remove what is listed")
    flags = parser.parse_args(arguments)
    for folder in flags.folders:
        if not user_path(folder).is_dir():
            raise InputError(f"there is no folder {folder!r}")
    sizes = {path: size_of(path) for path in left_behind(map(user_path, flags.folders or ["runs"]))}
    if not sizes:
        print("nothing to remove")
        return
    total = f"{sum(sizes.values()):,}"
    print(
        table([*((str(path), f"{size:,}") for path, size in sizes.items()), ("all", total)], ("left behind", "bytes"))
    )
    if flags.yes:
        for path in sizes:
            shutil.rmtree(path)
    print(f"{total} bytes are free again" if flags.yes else "nothing was removed; --yes removes them")


def left_behind(folders: Iterable[Path]) -> Iterator[Path]:
    """This suite's partial folders at any depth that nobody writes."""
    for folder in folders:
        for path in sorted(folder.rglob("*.partial")):
            ours = path.is_dir() and any((path / mark).exists() for mark in (MARKER, PROGRESS))
            if ours and not is_locked(Output(path.with_suffix("")).lock_file):
                yield path


def is_locked(file: Path) -> bool:
    """Whether another process holds this lock."""
    if not file.exists():
        return False
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    run(main)
