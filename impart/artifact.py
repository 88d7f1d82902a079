"""The delta artifact: a folder with delta.json and one safetensors shard per transformer layer, plus one for the rest.

It holds what base + delta -> fine-tuned needs and no copy of base weights: the compressed matrices, the parameters
outside of them that changed ("extras"), and the fine-tuned model's small files (config, tokenizer) under `model/`.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from impart.checkpoint import Checkpoint
from impart.companions import companion_name, stays_inside
from impart.dtypes import DTYPES
from impart.encodings.encoded import Encoded, Triplets, encoding_of, refuse_non_finite
from impart.errors import InputError
from impart.files import sha256_of, user_path
from impart.hub import fetch_model, holds_file, is_hub_id
from impart.json_fields import REMEDY
from impart.manifest import read_manifest
from impart.matrices import head_and_rest, split_name
from impart.outputs import MANIFEST
from impart.report import progress
from impart.workers import in_order, readers

COMPANIONS = "model"


@dataclass(frozen=True)
class Sizes:
    """Bytes of the linear layers' delta with its headers, of the extras, and of both in 16 bit and as stored."""

    linear: int
    linear_dense: int
    extras: int
    manifest: int
    checkpoint: int
    values: int

    @property
    def total(self) -> int:
        return self.linear + self.extras + self.manifest

    @property
    def linear_ratio(self) -> float:
        return self.linear_dense / max(self.linear, 1)

    @property
    def checkpoint_ratio(self) -> float:
        return self.checkpoint / max(self.total, 1)


class Delta:
    """An artifact opened for reading; made by `open_delta`."""

    def __init__(self, path: Path, manifest: dict):
        self.path, self.manifest = path, manifest
        self._verified: set[str | Path] = set()

    def names(self) -> list[str]:
        """The compressed matrices, in layer order."""
        return list(self.manifest["matrices"])

    def shape(self, name: str) -> tuple[int, int]:
        m, n = self._entry(name)["shape"]
        return m, n

    def rank(self, name: str) -> int | None:
        """Number of stored singular triplets, None where the matrix is not stored as factors."""
        return self._entry(name).get("rank")

    def reconstruct(
        self,
        name: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        base: Checkpoint | None = None,
    ) -> torch.Tensor:
        """dW (m, n), dense: what has to be added to the base's weight. Computed in fp32, returned in `dtype`.

        A lossless delta says what the fine-tuned weight is, not how far it is from the base's, and needs `base`:
        InputError without.
        """
        stored = self.stored(name, device)
        if stored.holds_delta or base is None:
            dW = stored.dense(name).to(device=device, dtype=dtype)
        else:
            W = base.tensor(name, device)
            dW = stored.restored(name, W.to(self.dtype(name))).float().sub_(W.float()).to(dtype)
        refuse_non_finite(name, dW)  # in `dtype`, whose range may be smaller
        return dW

    def factors(self, name: str, device: torch.device | str = "cpu") -> Triplets:
        """U (m, r), s (r,), V (n, r) in fp32, masked and rescaled, of a matrix stored as factors."""
        return self.stored(name, device).factors(name)

    def stored(self, name: str, device: torch.device | str = "cpu") -> Encoded:
        """A matrix as it is stored: its tensors, and all that delta.json says of it."""
        entry = self._entry(name)
        return Encoded(entry["encoding"], self.shape(name), self._tensors(name, device), entry)

    @property
    def needs_base(self) -> bool:
        """Whether it says what weights are, not how far from the base's: `reconstruct` then asks for the base."""
        return not all(hasattr(encoding_of(entry["encoding"]), "dense") for entry in self.manifest["matrices"].values())

    def extras(self) -> list[str]:
        """Parameters outside the compressed set that differ from the base's."""
        return list(self.manifest["extras"])

    def extra(self, name: str) -> torch.Tensor:
        """The fine-tuned value of an extra parameter, whole."""
        return self._read(self.manifest["extras"][name]["shard"], [name])[name]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that a matrix has in the fine-tuned checkpoint."""
        return DTYPES[self._entry(name)["dtype"]]

    def companions(self) -> list[Path]:
        """The fine-tuned model's config, tokenizer and other small files; InputError unless they are as recorded."""
        folder, recorded = self.path / COMPANIONS, self.manifest["files"]
        inside = sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.is_dir() else []
        present = [str(path.relative_to(folder)) for path in inside]
        foreign = next((name for name in present if name not in recorded and not name.startswith(".")), None)
        if foreign is not None:
            raise InputError(f"{folder} holds {foreign!r}, which {MANIFEST} does not list; remove it, or {REMEDY}")
        files = [folder / name for name in recorded]
        for file in files:
            self._verify_companion(file)
        return files

    def _verify_companion(self, file: Path) -> None:
        if file in self._verified:
            return
        if (
            not file.is_file()
            or not stays_inside(file, self.path)
            or sha256_of(file) != self.manifest["files"][companion_name(file)]
        ):
            raise InputError(
                f"{file} is missing or altered (its sha256 is not the one in {MANIFEST}), or a link out of the delta; "
                f"{REMEDY}"
            )
        self._verified.add(file)

    def verify(self) -> None:
        """InputError unless every shard is there and holds the bytes that delta.json recorded."""
        files = progress(list(self.manifest["shards"]), what="verifying the delta", unit="shard")
        for _ in in_order(self._verify, files, readers()):
            pass
        self.companions()

    def check_base(self, base: Checkpoint) -> None:
        """InputError when `base` is not the model that this delta was taken from."""
        self.check_shapes(base)
        expected, found = self.manifest["base"]["fingerprint"], base.fingerprint()
        if expected != found:
            raise InputError(
                f"{str(self.path)!r} is a delta of {self.manifest['base']['source']!r} (fingerprint "
                f"{expected[:12]}), but {base.source!r} has fingerprint {found[:12]}; give that base"
            )

    def check_shapes(self, base: Checkpoint) -> None:
        """InputError unless every matrix has the base's shape: a stranger's delta may ask for no other memory."""
        for name in self.names():
            shape = base.shape(name) if name in base else None
            if shape != self.shape(name):
                raise InputError(
                    f"{str(self.path)!r} holds a matrix {name} of shape {list(self.shape(name))}, but "
                    f"{base.source!r} has {'none' if shape is None else list(shape)} of this name; give that base"
                )
            tensor, rows = split_name(name)
            rest = head_and_rest(tensor, rows.stop)[1] if isinstance(rows, slice) else ""
            if rest in self.manifest["extras"] and self.manifest["extras"][rest]["shape"][1:] != [self.shape(name)[1]]:
                raise InputError(f"{str(self.path)!r} holds {rest} with rows of another length than {name}; {REMEDY}")

    def check_finetuned(self, finetuned: Checkpoint) -> None:
        """InputError when `finetuned` is not the model that this delta leads to."""
        recorded, found = self.manifest["finetuned"], finetuned.fingerprint()
        if recorded["fingerprint"] != found:
            raise InputError(
                f"{str(self.path)!r} is a delta of fine-tuned {recorded['source']!r} (fingerprint "
                f"{recorded['fingerprint'][:12]}), but {finetuned.source!r} has {found[:12]}; name that "
                "model, or none where the delta holds all that is needed"
            )

    def sizes(self) -> Sizes:
        """Bytes counted from the written shards."""
        shards, entries = self.manifest["shards"].values(), self.manifest["matrices"].values()
        extras = sum(extra["bytes"] for extra in self.manifest["extras"].values())
        linear = sum(entry["bytes"] for entry in entries) + sum(shard["header_bytes"] for shard in shards)
        dense = sum(2 * entry["shape"][0] * entry["shape"][1] for entry in entries)
        values = sum(sum(entry["kept"]) * entry["bits"] / 8 for entry in entries)
        return Sizes(
            linear,
            dense,
            extras,
            (self.path / MANIFEST).stat().st_size,
            self.manifest["finetuned"]["bytes"],
            int(values),
        )

    def parts(self) -> dict[str, int]:
        """Bytes of the matrices' tensors by what they are: packed codes, kept values, singular values ..."""
        found: dict[str, int] = {}
        for shard in self.manifest["shards"]:
            with safe_open(self.path / shard, "pt") as stored:
                views = {key: stored.get_slice(key) for key in stored.keys()}
            for name, entry in self.manifest["matrices"].items():
                titles = encoding_of(entry["encoding"]).TENSORS
                for suffix in entry["tensors"] if entry["shard"] == shard else ():
                    view, title = views[f"{name}.{suffix}"], titles[suffix]
                    size = math.prod(view.get_shape()) * DTYPES[view.get_dtype()].itemsize
                    found[title] = found.get(title, 0) + size
        return found

    def _entry(self, name: str) -> dict:
        try:
            return self.manifest["matrices"][name]
        except KeyError:
            raise InputError(f"{str(self.path)!r} holds no matrix {name!r}") from None

    def _tensors(self, name: str, device: torch.device | str) -> dict[str, torch.Tensor]:
        entry = self._entry(name)
        keys = [f"{name}.{suffix}" for suffix in entry["tensors"]]
        read = self._read(entry["shard"], keys)
        return {suffix: read[f"{name}.{suffix}"].to(device) for suffix in entry["tensors"]}

    def _read(self, shard: str, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        self._verify(shard)
        with safe_open(self.path / shard, "pt") as stored:
            return {key: stored.get_tensor(key).clone() for key in keys}

    def _verify(self, shard: str) -> None:
        if shard in self._verified:
            return
        file, recorded = self.path / shard, self.manifest["shards"][shard]
        if not file.is_file():
            raise InputError(f"shard {shard} of delta {str(self.path)!r} is missing; fetch or make the delta again")
        if file.stat().st_size != recorded["bytes"] or sha256_of(file) != recorded["sha256"]:
            raise InputError(
                f"shard {shard} of delta {str(self.path)!r} is altered or truncated (its sha256 is not "
                "the one in delta.json); fetch or make the delta again"
            )
        self._verified.add(shard)


@functools.cache
def _is_on_hub(source: str) -> bool:
    return is_hub_id(source) and holds_file(source, MANIFEST)


def triplet_count(entry: Mapping[str, Any]) -> int | None:
    """Number of singular triplets among what is stored of a matrix, by its entry in delta.json; None: it has none."""
    return entry.get("head", entry).get("rank")


def is_delta(source: str | Path) -> bool:
    """Whether a folder or a hub id is a finished delta artifact."""
    path = user_path(source)
    return (path / MANIFEST).is_file() or (not path.exists() and _is_on_hub(str(source)))


def open_delta(source: str | Path) -> Delta:
    """A finished artifact: a folder, or a hub id, which is fetched. Its delta.json is checked in full.

    InputError when it is none, unfinished, or not sound.
    """
    path = user_path(source)
    if not path.exists() and is_delta(source):
        path = fetch_model(str(source))
    if not (path / MANIFEST).is_file():
        unfinished = path.with_name(path.name + ".partial")
        remedy = (
            f"the run that makes it was interrupted ({unfinished.name} is there): run it again to continue"
            if unfinished.is_dir()
            else "make it with delta.py --svd or sparsify/sparsify.py"
        )
        lack = f"no {MANIFEST}" if path.exists() else "no such folder" + ", nor on the hub" * is_hub_id(str(source))
        raise InputError(f"{str(path)!r} is not a delta artifact ({lack}); {remedy}")
    return Delta(path, read_manifest(path / MANIFEST))
