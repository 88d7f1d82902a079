"""Files that are whole or not there: synced, renamed into place, hashed, and never written to a full disk."""

import hashlib
import os
import shutil
from pathlib import Path

from impart.errors import InputError


def user_path(text: str | Path) -> Path:
    """A path as its user wrote it, ~ replaced by the home folder; InputError where that is nobody's."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{str(text)!r}: this machine knows no such home folder; write the whole path") from error


def sha256_of(file: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(file: Path) -> None:
    """Returns when the file's bytes are on the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(file: Path, data: bytes) -> None:
    """A file that holds all of `data` or, after a crash, what it held before."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def give_default_mode(file: Path) -> None:
    """Readable by whom the user's umask allows: some libraries create their files for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def replace_folder(finished: Path, target: Path) -> None:
    """Renames a finished folder to `target`; an older one there is removed only once the new one is in place."""
    old = target.with_name(f".{target.name}.replaced")  # hidden: a user's own backup may well be called NAME.old
    _remove(old)
    if target.exists():
        os.rename(target, old)
    os.rename(finished, target)
    sync_file(target.parent)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def room_below(path: Path) -> int:
    """Free bytes on the disk that `path` is on, or would be."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def free_space(path: Path, needed: int, what: str) -> None:
    """InputError when the disk below `path` has less than `needed` bytes left."""
    free = room_below(path)
    if needed > free:
        raise InputError(
            f"{what} needs {needed / 1e9:.2f} GB at {str(path)!r}, but the disk has {free / 1e9:.2f} GB "
            "free; make room or name a folder on another disk"
        )
