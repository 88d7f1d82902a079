"""Hugging Face checkpoints, written as sharded safetensors, each tensor as soon as it is there."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from impart.card import Card
from impart.companions import copy_companion
from impart.dtypes import DTYPE_CODES
from impart.files import free_space, sync_file, user_path
from impart.outputs import MARKER, Output, refuse_existing
from impart.weight_files import TensorSpec, tensor_bytes


class CheckpointWriter:
    """Streams tensors into a new checkpoint folder: every tensor goes to its place on disk as soon as it is added.

    The plan (all tensors, in order) fixes shards and offsets beforehand, so that nothing is buffered. The folder
    appears under its name at `finish`, complete and synced, or not at all.
    """

    def __init__(
        self, path: str | Path, plan: Sequence[TensorSpec], *, overwrite: bool = False, shard_bytes: int = 5 * 10**9
    ):
        self.path, self.overwrite = user_path(path), overwrite
        refuse_existing(self.path, overwrite)
        self._output = Output(self.path)
        self._partial = self._output.partial
        self._output.hold()
        with self._output.released_on_error():
            self._output.refuse_foreign_partial(ours=(self._partial / MARKER).exists())
            self._output.clear()  # before its space is asked for
            free_space(self.path, sum(spec.nbytes for spec in plan), "the checkpoint")
        self._partial.mkdir(parents=True)
        (self._partial / MARKER).touch()
        self._places: dict[str, tuple[TensorSpec, Path, int]] = {}
        shards = _shards(plan, shard_bytes)
        self.total_bytes = sum(spec.nbytes for spec in plan)
        for number, specs in enumerate(shards, 1):
            single = len(shards) == 1
            file = "model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._reserve(self._partial / file, specs)
        self._single = len(shards) == 1
        self._waiting = set(self._places)

    def _reserve(self, file: Path, specs: Sequence[TensorSpec]) -> None:
        """Writes the safetensors header (its length, then JSON padded to 8 bytes) and remembers each tensor's place."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for spec in specs:
            header[spec.name] = {
                "dtype": DTYPE_CODES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [end, end + spec.nbytes],
            }
            end += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
        for spec in specs:
            start = 8 + len(text) + header[spec.name]["data_offsets"][0]
            self._places[spec.name] = (spec, file, start)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Writes one planned tensor, in any order."""
        spec, file, start = self._places[name]
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise ValueError(f"{name}: {tuple(tensor.shape)} {tensor.dtype} added, {spec.shape} {spec.dtype} planned")
        with file.open("r+b") as stream:
            stream.seek(start)
            stream.write(tensor_bytes(tensor))
        self._waiting.discard(name)

    def finish(self, companions: Iterable[Path] = (), card: Card | None = None) -> None:
        """Copies the companions, writes index and card, syncs everything and makes the folder visible."""
        if self._waiting:
            raise ValueError(f"{len(self._waiting)} planned tensors were never added, first {min(self._waiting)}")
        for file in companions:
            copy_companion(file, self._partial)
        if card is not None:
            card.write(self._partial)
        if not self._single:
            index = {
                "metadata": {"total_size": self.total_bytes},
                "weight_map": {name: place[1].name for name, place in sorted(self._places.items())},
            }
            (self._partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        for file in self._partial.rglob("*"):
            sync_file(file)
        self._output.publish()


def _shards(plan: Sequence[TensorSpec], shard_bytes: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in plan:
        if shards[-1] and size + spec.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards
