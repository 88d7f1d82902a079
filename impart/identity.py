"""What a model is, for all that must not mistake one for another: a fingerprint of all its weights.

The fingerprint is a sha256 over the name, shape, dtype and sha256 of every tensor, so that it is that of the model and
not of the files that hold it. What was read once is remembered in IMPART_CACHE (default ~/.cache/impart) for as long as
the file has its size, times and place on the disk. `impart.companions.digests` says the same of the small files.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from impart.architecture import BUFFERS, EMBEDDING, HEAD
from impart.dtypes import DTYPE_CODES
from impart.errors import InputError
from impart.files import user_path, write_atomically
from impart.report import progress
from impart.workers import in_order, readers

if TYPE_CHECKING:
    from impart.checkpoint import Checkpoint

SETTLED = 10**8  # ns: a file that changed as shortly ago as clocks are coarse may change again unseen


def fingerprint(checkpoint: "Checkpoint") -> str:
    """sha256 in hexadecimal digits of everything that the weights are.

    Left out is what the file formats of one model differ in: buffers, and a head that repeats the embedding.
    """
    found = tensor_digests(checkpoint)
    embeddings = {found[name] for name in found if name.endswith(EMBEDDING)}
    whole = hashlib.sha256()
    for name in checkpoint.names():
        if not name.endswith(BUFFERS) and not (name.endswith(HEAD) and found[name] in embeddings):
            facts = (name, list(checkpoint.shape(name)), DTYPE_CODES[checkpoint.dtype(name)], found[name])
            whole.update(json.dumps(facts).encode() + b"\n")
    return whole.hexdigest()


def tensor_digests(checkpoint: "Checkpoint") -> dict[str, str]:
    """The sha256 of every tensor's values in row-major order."""
    files: dict[Path | None, list[str]] = {}
    for name in checkpoint.names():
        files.setdefault(checkpoint.file(name), []).append(name)
    found: dict[str, str] = {}
    for file, names in progress(list(files.items()), what="fingerprint", unit="file"):
        memory = _Memory(file) if file is not None else None
        known = memory.read(names) if memory is not None else None
        if known is None:
            known = dict(zip(names, in_order(checkpoint.digest, names, readers()), strict=True))
            if memory is not None:
                memory.write(known)
        found |= known
    return found


def cache_folder() -> Path:
    """Where this suite keeps what it can make again; InputError for a user without a home."""
    return user_path(os.environ.get("IMPART_CACHE") or "~/.cache/impart")


class _Memory:
    """The digests of one weight file, kept in the cache beside what tells that the file has not changed."""

    def __init__(self, file: Path):
        path, status = os.path.realpath(file), file.stat()
        self._state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
        self._settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED
        self._name = f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"

    def _file(self) -> Path:
        return cache_folder() / "fingerprints" / self._name

    def read(self, names: Iterable[str]) -> dict[str, str] | None:
        """The digests of exactly these tensors, None where they are not known."""
        try:
            content = json.loads(self._file().read_text(encoding="utf-8"))
            found = {name: str(content["tensors"][name]) for name in names}
            return found if content["state"] == self._state else None
        except (OSError, ValueError, LookupError, TypeError):  # absent, no cache, or nothing that was written here
            return None

    def write(self, found: Mapping[str, str]) -> None:
        """Remembers them, where the file is settled and the cache may be written to."""
        if self._settled:
            with contextlib.suppress(OSError, InputError):
                self._file().parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._file(), json.dumps({"state": self._state, "tensors": dict(found)}).encode())
