"""Writing a delta artifact shard by shard, so that a killed run continues and the bytes never depend on how it went.

Everything grows in `NAME.partial`. A shard is written under a temporary name, synced and renamed, then a small record
says that it is complete and what is in it; delta.json is made from the records alone, and the folder gets its name
last.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from impart import processes
from impart.architecture import layer_of
from impart.artifact import COMPANIONS, MANIFEST, Delta, open_delta
from impart.card import delta_card
from impart.checkpoint import Checkpoint
from impart.companions import companion_name, copy_companion
from impart.dtypes import DTYPE_CODES
from impart.encodings.encoded import Encoded
from impart.errors import InputError
from impart.files import free_space, give_default_mode, sha256_of, sync_file, user_path, write_atomically
from impart.manifest import CHECKSUM, FORMAT, VERSION, checksum
from impart.outputs import Output, refuse_existing
from impart.report import Report, versions

PROGRESS = ".progress"


@dataclass(frozen=True)
class Shard:
    """One file of the artifact: the matrices and the extras of one layer."""

    file: str
    matrices: tuple[str, ...]
    extras: tuple[str, ...]


def model_facts(checkpoint: Checkpoint) -> dict:
    """What a manifest says of a model: where it came from, which weights it had, and their size in bytes."""
    return {
        "source": checkpoint.source,
        "fingerprint": checkpoint.fingerprint(),
        "bytes": sum(checkpoint.spec(name).nbytes for name in checkpoint.names()),
    }


class DeltaWriter:
    """Opens `NAME.partial`, new or where an equal run left it.

    `head`: kind, method, settings, seed, base, finetuned - all that decides the bytes; a partial folder with another
    head is another run's. `dtypes`: matrix -> dtype in the fine-tuned checkpoint.
    """

    def __init__(
        self,
        path: str | Path,
        head: Mapping,
        *,
        dtypes: Mapping[str, torch.dtype],
        extras: Sequence[str],
        dropped: Sequence[str],
        needed_bytes: int,
        overwrite: bool = False,
    ):
        self.path = user_path(path)
        refuse_existing(self.path, overwrite)
        self._output = Output(self.path)
        self._partial = self._output.partial
        self._records = self._partial / PROGRESS
        self._dtypes = dtypes
        self._head = {"format": FORMAT, "version": VERSION, **head, "versions": versions(), "dropped": list(dropped)}
        self.shards = _shards(list(dtypes), extras)
        if processes.rank() == 0:
            self._output.hold()
            with self._output.released_on_error():
                free_space(self.path, needed_bytes - _size(self._partial), "the delta")
                self._open(overwrite)
        processes.wait_for_all()

    def _open(self, overwrite: bool) -> None:
        parts = [(shard.file, shard.matrices, shard.extras) for shard in self.shards]
        wanted = json.loads(json.dumps({**self._head, "shards": parts}))
        run = self._records / "run.json"
        if self._partial.exists():
            found = json.loads(run.read_text()) if run.is_file() else {}
            if found == wanted:
                return
            if found and not overwrite:
                raise InputError(
                    f"{str(self._partial)!r} holds an interrupted run with other settings "
                    f"({_first_difference(found, wanted)}); add --overwrite to drop it, "
                    "or rerun the old command to finish it"
                )
            self._output.refuse_foreign_partial(ours=self._records.exists() or (self._partial / MANIFEST).exists())
            self._output.clear()
        self._records.mkdir(parents=True)
        write_atomically(run, json.dumps(wanted, indent=1).encode())

    def pending(self) -> list[Shard]:
        """The shards of this process that are not yet complete, in order."""
        mine = self.shards[processes.rank() :: processes.world_size()]
        return [shard for shard in mine if not self._is_complete(shard)]

    def write(
        self,
        shard: Shard,
        matrices: Mapping[str, Encoded],
        extras: Mapping[str, torch.Tensor],
        rows: Sequence[dict] = (),
    ) -> None:
        """Writes one shard with all its matrices and extras, and then the record of it. `rows` go to the report."""
        tensors = {
            f"{name}.{suffix}": tensor.cpu().contiguous()
            for name, encoded in matrices.items()
            for suffix, tensor in encoded.tensors.items()
        }
        tensors |= {name: tensor.contiguous() for name, tensor in extras.items()}
        file, temporary = self._partial / shard.file, self._records / f"{shard.file}.tmp"
        save_file(tensors, temporary, {"format": "pt"})
        give_default_mode(temporary)
        sync_file(temporary)
        temporary.rename(file)
        payload = sum(tensor.nbytes for tensor in tensors.values())
        size = file.stat().st_size
        record = {
            "shard": {"bytes": size, "header_bytes": size - payload, "sha256": sha256_of(file)},
            "matrices": {name: self._entry(name, matrices[name], shard.file) for name in shard.matrices},
            "extras": {
                name: {
                    "shard": shard.file,
                    "shape": list(extras[name].shape),
                    "dtype": DTYPE_CODES[extras[name].dtype],
                    "bytes": extras[name].nbytes,
                }
                for name in shard.extras
            },
            "rows": list(rows),
        }
        write_atomically(self._record_file(shard), json.dumps(record).encode())

    def written(self, shard: Shard) -> dict[str, Encoded]:
        """The matrices of a complete shard, as `write` got them."""
        entries = json.loads(self._record_file(shard).read_text())["matrices"]
        with safe_open(self._partial / shard.file, "pt") as stored:
            return {
                name: Encoded(
                    entry["encoding"],
                    tuple(entry["shape"]),
                    {suffix: stored.get_tensor(f"{name}.{suffix}").clone() for suffix in entry["tensors"]},
                    entry,
                )
                for name, entry in entries.items()
            }

    def finish(self, companions: Iterable[Path], report: Report) -> Delta | None:
        """The first process collects all records into delta.json and makes the artifact visible; others get None."""
        processes.wait_for_all()
        if processes.rank() == 0:
            self._finish(companions, report)
        processes.wait_for_all()
        return open_delta(self.path) if processes.rank() == 0 else None

    def _finish(self, companions: Iterable[Path], report: Report) -> None:
        records = [json.loads(self._record_file(shard).read_text()) for shard in self.shards]
        for left in self._partial.glob(".*.tmp"):  # by a run that was killed while it wrote report.json or delta.json
            left.unlink()
        (self._partial / COMPANIONS).mkdir(exist_ok=True)
        files = {}
        for source in companions:
            copy = copy_companion(source, self._partial / COMPANIONS)
            sync_file(copy)
            files[companion_name(source)] = sha256_of(copy)
        manifest = {
            **self._head,
            "matrices": {name: entry for record in records for name, entry in record["matrices"].items()},
            "extras": {name: extra for record in records for name, extra in record["extras"].items()},
            "shards": {shard.file: record["shard"] for shard, record in zip(self.shards, records, strict=True)},
            "files": files,
        }
        manifest[CHECKSUM] = checksum(manifest)
        report.rows = [row for record in records for row in record["rows"]]
        report.write(self._partial / "report.json")
        linear = sum(entry["bytes"] for entry in manifest["matrices"].values())
        headers = sum(record["shard"]["header_bytes"] for record in records)
        delta_card(self.path.name, manifest, linear + headers).write(self._partial)
        write_atomically(self._partial / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        shutil.rmtree(self._records)
        self._output.publish()

    def _entry(self, name: str, encoded: Encoded, file: str) -> dict:
        parts = [value for value in encoded.facts.values() if isinstance(value, dict)]
        for key, value in (item for facts in (encoded.facts, *parts) for item in facts.items()):
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(
                    f"{key} of {name} is {value}, which is no delta; check the two models and the settings"
                )
        return {
            "encoding": encoded.encoding,
            "shape": list(encoded.shape),
            "shard": file,
            "dtype": DTYPE_CODES[self._dtypes[name]],
            "tensors": list(encoded.tensors),
            "bytes": encoded.nbytes,
            **encoded.facts,
        }

    def _record_file(self, shard: Shard) -> Path:
        return self._records / f"{shard.file}.json"

    def _is_complete(self, shard: Shard) -> bool:
        file, record = self._partial / shard.file, self._record_file(shard)
        return (
            file.is_file() and record.is_file() and json.loads(record.read_text())["shard"]["sha256"] == sha256_of(file)
        )


def _shards(matrices: Sequence[str], extras: Sequence[str]) -> list[Shard]:
    numbered = {layer for name in (*matrices, *extras) if (layer := layer_of(name)) is not None}
    layers: list[int | None] = [*sorted(numbered), None]
    return [
        Shard(
            "rest.safetensors" if layer is None else f"layer-{layer:05d}.safetensors",
            tuple(name for name in matrices if layer_of(name) == layer),
            tuple(name for name in extras if layer_of(name) == layer),
        )
        for layer in layers
    ]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _first_difference(old: dict, new: dict, prefix: str = "") -> str:
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
                return _first_difference(old[key], new[key], f"{prefix}{key}.")
            if key == "shards":
                return "other matrices or extras"
            return f"{prefix}{key} was {old.get(key)!r}, is {new.get(key)!r}"
    return "no difference"
