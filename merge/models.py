"""The fine-tuned models of a merge, each a checkpoint or a delta artifact, read by rows.

A parameter of a checkpoint is read from its file block by block, exactly. A delta (stored in an artifact, or left by a
sparsification method) is computed whole, in float32, and waits in a scratch file without a name, so that memory does
not grow with the number of models and nothing stays on the disk.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from impart.adapter import open_finetuned
from impart.architecture import BUFFERS, EMBEDDING, HEAD, heads, is_vocabulary, linear_names
from impart.artifact import Delta, is_delta, open_delta
from impart.checkpoint import Checkpoint
from impart.errors import InputError
from impart.matrices import by_tensor, tensor_of
from impart.reconstruct import decoded_parts, planned_tensors
from impart.weight_files import load_bin, read_json, tensor_bytes
from merge.settings import ModelEntry

MAPPED_BYTES, PAGES = 1 << 20, 1 << 16  # of each model; what the system maps around a byte that is read
Rows = slice | Tensor  # of the first dimension


@dataclass(frozen=True)
class Parameter:
    """One parameter of one model: `read(rows)` on the CPU, its values in the model's dtype or its delta in float32."""

    read: Callable[[Rows], Tensor]
    holds_delta: bool


class CheckpointRows:
    """Reads rows of a checkpoint's tensors, one tensor after the other.

    Opening a file takes as long as some blocks, and a mapping counts every page read as memory: it is renewed now and
    then.
    """

    def __init__(self, checkpoint: Checkpoint):
        self._checkpoint = checkpoint
        self._name, self._mapped, self._read_bytes = "", torch.empty(0), 0

    def read(self, name: str, rows: Rows) -> Tensor:
        if self._name != name or self._read_bytes > MAPPED_BYTES:
            self._name, self._mapped, self._read_bytes = name, self._map(name), 0
        found = self._mapped[rows].clone()
        self._read_bytes += max(found.nbytes, PAGES)
        return found

    def _map(self, name: str) -> Tensor:
        place = self._checkpoint.place(name)
        file = self._checkpoint.file(place.tensor)
        if file is None:
            return self._checkpoint.tensor(name)
        stored = self._checkpoint.name_in_file(place.tensor)
        if file.suffix != ".safetensors":
            return place.of(load_bin(file)[stored].detach())
        with safe_open(file, "pt") as shard:
            return place.of(shard.get_tensor(stored))


class Scratch:
    """A tensor in an unnamed temporary file of the output's disk, read back by rows."""

    def __init__(self, tensor: Tensor, folder: Path):
        self._row_shape, self._dtype = tuple(tensor.shape[1:]), tensor.dtype
        self._row_bytes = tensor[:1].numel() * tensor.dtype.itemsize
        self._file = tempfile.TemporaryFile(dir=folder)
        self._file.write(tensor_bytes(tensor))

    def read(self, rows: Rows) -> Tensor:
        if isinstance(rows, slice):
            return self._read_run(rows.start, rows.stop)
        return torch.cat([self._read_run(first, last + 1) for first, last in _runs(rows)])

    def _read_run(self, start: int, stop: int) -> Tensor:
        self._file.seek(start * self._row_bytes)
        data = bytearray((stop - start) * self._row_bytes)
        self._file.readinto(data)
        return torch.frombuffer(data, dtype=self._dtype).view(stop - start, *self._row_shape)


class Model:
    """What checkpoints and artifacts have in common as models of a merge.

    `identity` is of the content: models are taken in its order, so that the order of the flags cannot matter.
    `tied`: the head is the embedding itself, by the config or because no head is stored. Of a base with a head of its
    own, a model that stores none has none.
    """

    def __init__(
        self, entry: ModelEntry, source: str, config: dict, names: Iterable[str], identity: str, base: Checkpoint
    ):
        self.entry, self.name, self.source, self.config, self.identity = entry, entry.name, source, config, identity
        self._names = dict.fromkeys(name for name in names if not name.endswith(BUFFERS))
        stored = any(name.endswith(HEAD) for name in self._names)
        self._repeated = _repeated(base)
        own = any(name.endswith(HEAD) and name not in self._repeated for name in base.names())
        self.tied = bool(config.get("tie_word_embeddings")) or not (stored or own)
        self._embedding = next((name for name in self._names if name.endswith(EMBEDDING)), None)

    def names(self) -> list[str]:
        return list(self._names)

    def __contains__(self, name: str) -> bool:
        return self.stored_name(name) in self._names

    def stored_name(self, name: str) -> str:
        """Where the values of `name` stand: a tied head's in the embedding."""
        if self.tied and self._embedding is not None and name.endswith(HEAD):
            return self._embedding
        return name if name in self._names else self._repeated.get(name, name)


class CheckpointModel(Model):
    """A checkpoint; the base of the merge as well, which has no mask."""

    def __init__(
        self, checkpoint: Checkpoint, base: Checkpoint, entry: ModelEntry, scratch: Path, device: torch.device
    ):
        facts = (checkpoint.source, checkpoint.config, checkpoint.names(), checkpoint.fingerprint())
        super().__init__(entry, *facts, base)
        self.checkpoint, self._base, self._rows = checkpoint, base, CheckpointRows(checkpoint)
        self._scratch, self._device, self._linear = scratch, device, set(linear_names(checkpoint))

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(self.stored_name(name))

    def dtype(self, name: str) -> torch.dtype:
        return self.checkpoint.dtype(self.stored_name(name))

    def companions(self) -> list[Path]:
        return self.checkpoint.companions()

    def open(self, name: str) -> Parameter:
        stored, masked = self.stored_name(name), self.entry.premask is not None and name in self._linear
        dW = self.checkpoint.change(stored, self._device)
        if dW is None and not masked:
            return Parameter(partial(self._rows.read, stored), holds_delta=False)
        if dW is None:
            base = self._base.finite_tensor(name).to(self._device).float()
            dW = self.checkpoint.finite_tensor(name).to(self._device).float().sub_(base)
        if self.entry.premask is not None and masked:
            dW = self.entry.premask.of_delta(name, dW)
        return Parameter(Scratch(dW, self._scratch).read, holds_delta=True)


class DeltaModel(Model):
    """A delta artifact: base + delta is the model that it stands for."""

    def __init__(self, delta: Delta, base: Checkpoint, entry: ModelEntry, scratch: Path, device: torch.device):
        if entry.premask is not None and delta.manifest["kind"] != "svd":
            raise InputError(
                f"models.{entry.name}: {str(delta.path)!r} already is a {delta.manifest['kind']} delta; "
                f"apply mask {entry.premask.method.name} to the checkpoint instead, or set mask: none for it"
            )
        self.delta, self._base, self._rows = delta, base, CheckpointRows(base)
        self._scratch, self._device = scratch, device
        self._matrices, self._by_tensor = set(delta.names()), by_tensor(delta.names())
        delta.check_shapes(base)
        self._specs = {spec.name: spec for spec in planned_tensors(delta, base)}
        config = next((file for file in delta.companions() if file.name == "config.json"), None)
        stated = json.dumps([delta.manifest["shards"], delta.manifest["matrices"]], sort_keys=True)
        super().__init__(
            entry,
            str(delta.path),
            read_json(config, str(delta.path)) if config is not None else base.config,
            self._specs,
            hashlib.sha256(stated.encode()).hexdigest(),
            base,
        )

    def shape(self, name: str) -> tuple[int, ...]:
        return self._specs[self.stored_name(name)].shape

    def dtype(self, name: str) -> torch.dtype:
        return self._specs[self.stored_name(name)].dtype

    def companions(self) -> list[Path]:
        return self.delta.companions()

    def open(self, name: str) -> Parameter:
        name = self.stored_name(name)
        tensor = tensor_of(name)
        if is_vocabulary(name) and name in self._by_tensor:  # as a weight: its rows may be other tokens than the base's
            whole = decoded_parts(self.delta, self._base, self._by_tensor[name], self._specs[name], self._device)
            return Parameter(Scratch(whole, self._scratch).read, holds_delta=False)
        if name in self._matrices:
            return Parameter(Scratch(self._matrix(name), self._scratch).read, holds_delta=True)
        if tensor in self.delta.manifest["extras"]:
            value = self._base.place(name).of(self.delta.extra(tensor))
            return Parameter(Scratch(value, self._scratch).read, holds_delta=False)
        return Parameter(partial(self._rows.read, name), holds_delta=False)

    def _matrix(self, name: str) -> Tensor:
        mask = self.entry.premask
        if mask is None or self.delta.rank(name) == 0:
            return self.delta.reconstruct(name, device=self._device, base=self._base)
        if not mask.method.needs_svd:
            return mask.of_delta(name, self.delta.reconstruct(name, device=self._device))
        return mask.of_triplets(name, self.delta.factors(name, self._device))


def open_models(
    entries: Iterable[ModelEntry], base: Checkpoint, scratch: Path, device: torch.device
) -> list[CheckpointModel | DeltaModel]:
    """The models in an order that depends on what they are, not on how they are called or given."""
    models = [
        DeltaModel(open_delta(entry.path), base, entry, scratch, device)
        if is_delta(entry.path)
        else CheckpointModel(open_finetuned(entry.path, base), base, entry, scratch, device)
        for entry in entries
    ]
    return sorted(models, key=lambda model: (model.identity, model.entry.weight, model.name))


def _repeated(base: Checkpoint) -> dict[str, str]:
    """The tensors of a head that are an embedding once more, each with the name of that."""
    of_heads = heads(base.names())
    embeddings = [name for name in base.names() if is_vocabulary(name) and name not in of_heads]
    return {
        name: embedding
        for name in of_heads
        for embedding in embeddings
        if base.spec(name).shape == base.spec(embedding).shape and base.digest(name) == base.digest(embedding)
    }


def _runs(rows: Tensor) -> list[tuple[int, int]]:
    """Consecutive ascending runs (first, last) of row numbers (k,)."""
    breaks = torch.nonzero(rows.diff() != 1).flatten() + 1
    starts = torch.cat([torch.zeros(1, dtype=torch.long), breaks])
    stops = torch.cat([breaks, torch.tensor([len(rows)])])
    return [(int(rows[start]), int(rows[stop - 1])) for start, stop in zip(starts, stops, strict=True)]
