"""MODEL of the command line: a checkpoint folder, a hub id, or a delta artifact that becomes one in a bounded cache.

A delta is rebuilt once into `~/.cache/impart/reconstructed/` (or IMPART_CACHE), under the hash of its delta.json, and
used from there afterwards. When the cache would exceed IMPART_CACHE_GB (default 100 GB), the least recently used models
are removed, but never one that a running evaluation uses.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from impart.artifact import COMPANIONS, MANIFEST, Delta, is_delta, open_delta
from impart.checkpoint import Checkpoint, open_checkpoint
from impart.companions import digests
from impart.dtypes import DTYPE_NAMES, short_name
from impart.errors import InputError
from impart.files import user_path, write_atomically
from impart.identity import cache_folder
from impart.pretrained import trusted
from impart.reconstruct import planned_tensors, write_model

log = logging.getLogger(__name__)

DEFAULT_CACHE_GB = 100.0
IDENTITY = ".identity.json"  # in a rebuilt model, written last: what it was then


class ModelSource:
    """What MODEL names, checked and identified, but not yet loaded or rebuilt."""

    def __init__(self, source: str, base_model: str | None = None):
        self.source, self.base_model = source, base_model
        self.name = model_name(source)
        self._delta: Delta | None = None
        self.delta_facts: dict | None = None
        if is_delta(source):
            self._delta = open_delta(source)
            manifest = (self._delta.path / MANIFEST).read_bytes()
            self.identity = {"delta": hashlib.sha256(manifest).hexdigest()}
            sizes = self._delta.sizes()
            self.delta_facts = {key: self._delta.manifest[key] for key in ("kind", "method", "settings", "seed")} | {
                "linear_ratio": round(sizes.linear_ratio, 4),
                "checkpoint_ratio": round(sizes.checkpoint_ratio, 4),
            }
            dtype = self._delta.dtype(self._delta.names()[0]) if self._delta.names() else torch.bfloat16
            self._delta.companions()  # verifies them: the tokenizer is read from there
            self.tokenizer_folder = self._delta.path / COMPANIONS
        else:
            if base_model:
                raise InputError(f"--base_model is for delta artifacts, but {source!r} is a whole checkpoint")
            checkpoint = open_checkpoint(source)
            self.identity = identity_of(checkpoint)
            dtype, self.tokenizer_folder = checkpoint.model_dtype(), checkpoint.path
        # The model's own, as in DTYPE of the command line.
        self.dtype = short_name(dtype) if dtype in DTYPE_NAMES.values() else "fp32"

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """The checkpoint folder that an engine can load; a rebuilt one stays in the cache while this is open."""
        if self._delta is None:
            yield open_checkpoint(self.source).path
        else:
            base = _open_base(self._delta, self.base_model)
            self._delta.check_base(base)  # also where the model was rebuilt before, over the right one
            with rebuilt(self._delta, base, self.identity["delta"]) as path:
                yield path


def model_name(source: str) -> str:
    """What a model is called in the results: the last part of its path or id."""
    return user_path(source).resolve().name or "model"


def identity_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Everything of a model that decides its answers, as digests by what they are of."""
    files = digests(checkpoint.companions())
    if not trusted():  # then it is not run
        files.pop("code", None)
    return {"fingerprint": checkpoint.fingerprint(), **files}


def rebuilt_folder() -> Path:
    """Where rebuilt models are kept."""
    return cache_folder() / "reconstructed"


@contextlib.contextmanager
def rebuilt(delta: Delta, base: Checkpoint, key: str) -> Iterator[Path]:
    """base + delta as a checkpoint folder, written by the first process that asks for it and locked while in use.

    The lock file lies beside the folder. Whoever holds it exclusively may write or remove the model; users share it.
    """
    folder = rebuilt_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / key[:32]
    with path.with_suffix(".lock").open("w") as lock:
        while True:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_intact(path):
                shutil.rmtree(path, ignore_errors=True)
                make_room(sum(spec.nbytes for spec in planned_tensors(delta, base)), keep=path)
                log.info("rebuilding %s over %s into %s", delta.path, base.source, path)
                write_model(delta, base, path)
                write_atomically(path / IDENTITY, json.dumps(identity_of(open_checkpoint(path))).encode())
            fcntl.flock(lock, fcntl.LOCK_SH)
            # Changing an exclusive lock into a shared one is not atomic: another process may have removed the model.
            if path.is_dir():
                break
        os.utime(lock.name)  # the time of last use, by which room is made
        yield path


def is_intact(path: Path) -> bool:
    """Whether a rebuilt model is still what was written."""
    try:
        return json.loads((path / IDENTITY).read_text()) == identity_of(open_checkpoint(path))
    except (OSError, ValueError):  # not there, not finished, or broken: InputError is a ValueError
        return False


def make_room(needed: int, keep: Path) -> None:
    """Removes the least recently used models until `needed` more bytes fit; InputError when they never can."""
    limit = _cache_limit()
    if needed > limit:
        raise InputError(
            f"the rebuilt model needs {needed / 1e9:.2f} GB, but the cache may have {limit / 1e9:.2f} GB; "
            "raise IMPART_CACHE_GB, or rebuild it yourself with delta.py --merge and evaluate that folder"
        )
    locks = sorted(keep.parent.glob("*.lock"), key=lambda lock: lock.stat().st_mtime)
    models = [lock.with_suffix("") for lock in locks if lock.with_suffix("").is_dir()]
    used = {model: sum(file.stat().st_size for file in model.iterdir()) for model in models}
    for model in models:
        if sum(used.values()) + needed <= limit:
            return
        with model.with_suffix(".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # in use
            log.info("removing %s from the cache (%.2f GB)", model, used[model] / 1e9)
            shutil.rmtree(model)
            del used[model]
    if sum(used.values()) + needed > limit:
        log.warning("the cache exceeds IMPART_CACHE_GB: all of its models are in use")


def _cache_limit() -> float:
    text = os.environ.get("IMPART_CACHE_GB")
    try:
        limit = float(text) if text else DEFAULT_CACHE_GB
    except ValueError:
        limit = -1.0
    if not limit > 0:
        raise InputError(f"IMPART_CACHE_GB={text} is not a positive number of gigabytes")
    return limit * 1e9


def _open_base(delta: Delta, base_model: str | None) -> Checkpoint:
    recorded = delta.manifest["base"]["source"]
    try:
        return open_checkpoint(base_model or recorded)
    except InputError as error:
        if base_model:
            raise
        raise InputError(
            f"{str(delta.path)!r} is a delta over {recorded!r}, which cannot be opened ({error}); say "
            "where its base model is with --base_model"
        ) from error
