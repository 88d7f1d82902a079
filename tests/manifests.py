"""Artifacts as a stranger would make them: delta.json edited, and signed anew or not signed at all."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file

from impart.manifest import CHECKSUM, checksum


@contextlib.contextmanager
def edited(folder: Path, *, signed: bool = True) -> Iterator[dict]:
    """The manifest of an artifact; what the caller changes is written back with its sha256, or without one."""
    file = folder / "delta.json"
    manifest = json.loads(file.read_text())
    yield manifest
    manifest.pop(CHECKSUM, None)
    file.write_text(json.dumps(manifest | ({CHECKSUM: checksum(manifest)} if signed else {})))


def replace_companion(folder: Path, name: str, content: bytes) -> None:
    """Puts a small file into an artifact, listed with its right sha256."""
    (folder / "model" / name).write_bytes(content)
    with edited(folder) as manifest:
        manifest["files"][name] = hashlib.sha256(content).hexdigest()


def replace_tensors(folder: Path, shard: str, **changed) -> None:
    """Puts other tensors into a shard, whose size and sha256 are recorded as they then are."""
    file = folder / shard
    tensors = load_file(file) | changed
    save_file(tensors, file, {"format": "pt"})
    data = file.read_bytes()
    sizes = {"bytes": len(data), "header_bytes": 8 + int.from_bytes(data[:8], "little")}
    with edited(folder) as manifest:
        manifest["shards"][shard] = sizes | {"sha256": hashlib.sha256(data).hexdigest()}
