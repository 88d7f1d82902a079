"""Hugging Face checkpoints, read tensor by tensor.

A checkpoint is a folder (or a hub id) with safetensors or PyTorch `.bin` weights, sharded or not, a config.json, and
whatever else its authors ship. Its tensors are those of the files; shape, dtype and values can also be asked of one
matrix of a 3-D tensor (impart/matrices.py), which is read alone. No function here holds more than the tensors that its
caller asked for.
"""

import copy
import hashlib
import logging
import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from impart.architecture import COUNTS, is_transposed, linear_names, names_like
from impart.companions import companions_of
from impart.dtypes import all_finite
from impart.errors import InputError
from impart.files import user_path
from impart.foreign_folders import foreign_kind
from impart.hub import fetch_model, is_hub_id
from impart.identity import fingerprint
from impart.matrices import Place, split_name
from impart.scales import QUANTIZATION, Scale, find_scales, unscaled, write_plain_config
from impart.weight_files import (
    TensorSpec,
    file_specs,
    load_bin,
    read_json,
    refuse_wrapped,
    tensor_bytes,
    weight_files,
)

log = logging.getLogger(__name__)

PIECE_BYTES = 1 << 23  # of a tensor that is read or looked through


class Checkpoint:
    """A checkpoint folder opened for reading; made by `open_checkpoint`."""

    def __init__(self, path: Path, source: str):
        self.path, self.source = path, source
        kind = foreign_kind(path)
        if kind is not None:
            raise InputError(f"{source!r} is no model whose weights can be read: {kind}")
        self.config = read_json(path / "config.json", f"checkpoint {source!r}")
        for key in COUNTS:
            if not isinstance(self.config.get(key), int | None):
                raise InputError(f"{path / 'config.json'}: {key} is {self.config[key]!r:.80}, not a whole number")
        self._specs: dict[str, TensorSpec] = {}
        self._files: dict[str, Path] = {}
        self._digests: dict[str, str] = {}
        for file, names in weight_files(path, source).items():
            for spec in file_specs(file):
                self._specs[spec.name], self._files[spec.name] = spec, file
            missing = sorted(set(names) - set(self._specs))
            if missing:
                raise InputError(f"{file} lacks {missing[0]!r}, which the index of {source!r} promises; fetch it again")
        if not self._specs:
            raise InputError(f"{source!r} holds no tensors; fetch it again")
        refuse_wrapped(list(self._specs), source)
        self._stored, self._quantized = self._specs, find_scales(self._specs, self._files, self.config, source)
        if self._quantized:
            self._specs = unscaled(self._stored, self._quantized)
            self.config = {key: value for key, value in self.config.items() if key != QUANTIZATION}

    def names(self) -> list[str]:
        """All tensors, sorted by layer number and name."""
        return sorted(self._specs, key=_natural)

    def __contains__(self, name: str) -> bool:
        tensor, index = split_name(name)
        if tensor not in self._specs or index is None:
            return tensor in self._specs
        shape = self._specs[tensor].shape
        if isinstance(index, slice):
            return len(shape) == 2 and max(index.start or 0, index.stop or 0) <= shape[0]
        return len(shape) == 3 and index < shape[0]

    def named_like(self, names: Collection[str]) -> "Checkpoint":
        """The same model with its tensors called as in `names`, where those differ by a base model's prefix."""
        renamed = names_like(self.names(), names)
        if not renamed:
            return self
        old, new = next((name, other) for name, other in renamed.items() if name != other)
        log.warning("%r calls %s what its base calls %s; the base's names are used", self.source, old, new)
        other = copy.copy(self)
        for kept in ("_specs", "_files", "_stored", "_quantized", "_digests"):
            setattr(other, kept, {renamed.get(name, name): value for name, value in getattr(self, kept).items()})
        return other

    def place(self, name: str) -> Place:
        """Where the values of a tensor, or of a matrix in a tensor, lie."""
        tensor, index = split_name(name)
        of_expert = isinstance(index, int)
        return Place(tensor, index, of_expert and is_transposed(tensor, self._specs[tensor].shape, self.config))

    def spec(self, name: str) -> TensorSpec:
        place = self.place(name)
        return TensorSpec(name, place.shape(self._specs[place.tensor].shape), self._specs[place.tensor].dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.spec(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self.spec(name).dtype

    def file(self, name: str) -> Path | None:
        """The weight file that the tensor stands in, None where it stands in none as it is."""
        tensor = split_name(name)[0]
        return None if tensor in self._quantized else self._files[tensor]

    def name_in_file(self, tensor: str) -> str:
        """What a tensor is called where it is stored."""
        return self._stored[tensor].name

    def change(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """dW in fp32, where not the weight is stored but its difference to a base's; here it never is."""
        return None

    def tensor(self, name: str, device: torch.device | str = "cpu") -> torch.Tensor:
        """The tensor as stored, or a matrix in one, on the device, in memory of its own: no file stays mapped."""
        place = self.place(name)
        if place.index is not None:
            return self._slice(place).to(device, copy=True, memory_format=torch.contiguous_format)
        whole, start = torch.empty(self.shape(name), dtype=self.dtype(name), device=device), 0
        flat = whole.view(-1)
        for piece in self._pieces(name):
            flat[start : start + piece.numel()] = piece.reshape(-1)
            start += piece.numel()
        return whole

    def _slice(self, place: Place) -> torch.Tensor:
        """The matrix of a 3-D tensor, of which no more is read where the file allows it."""
        file = self.file(place.tensor)
        if file is None or file.suffix != ".safetensors":
            return place.of(self.tensor(place.tensor))
        with safe_open(file, "pt") as shard:
            return place.turned(shard.get_slice(self.name_in_file(place.tensor))[place.index])

    def finite_tensor(self, name: str) -> torch.Tensor:
        """The tensor; InputError when it holds NaN or Inf."""
        return self._finite(name, self.tensor(name))

    def blocks(self, name: str, finite: bool = True) -> Iterator[torch.Tensor]:
        """The tensor's rows, some megabytes at a time; with `finite`, InputError when one holds NaN or Inf.

        Whoever reads them all has its digest afterwards: the fingerprint needs no second look at the file.
        """
        digest = hashlib.sha256()
        for piece in self._pieces(name):
            digest.update(tensor_bytes(piece))
            yield self._finite(name, piece) if finite else piece
        self._digests[name] = digest.hexdigest()

    def _pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Successive rows of the tensor, times their scales where it has some."""
        scale: Scale | None = self._quantized.get(name)
        start = 0
        for piece in self._pieces_of_file(name):
            yield piece if scale is None else scale.product(piece, start)
            start += len(piece) if scale is not None else 0

    def _pieces_of_file(self, name: str) -> Iterator[torch.Tensor]:
        """Successive rows as they lie in the file, which is mapped anew for each: a mapping counts every page read."""
        spec, file = self._stored[name], self._files[name]  # spec.name: what the file calls it
        shape, size = spec.shape, spec.nbytes
        rows = max(1, shape[0] * PIECE_BYTES // size) if shape and size else 1
        if file.suffix != ".safetensors":
            whole = load_bin(file)[spec.name].detach()
            yield from whole.split(rows) if shape else (whole,)
        elif size <= PIECE_BYTES:
            with safe_open(file, "pt") as shard:
                yield shard.get_tensor(spec.name)
        else:
            for start in range(0, shape[0], rows):
                with safe_open(file, "pt") as shard:
                    yield shard.get_slice(spec.name)[start : start + rows]

    def _finite(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and not all_finite(tensor):
            count = int((~torch.isfinite(tensor.double())).sum())
            raise InputError(
                f"{name} of {self.source!r} holds {count} NaN or Inf of {tensor.numel()} values; "
                "a delta of it means nothing: fetch the checkpoint again or repair the tensor"
            )
        return tensor

    def model_dtype(self) -> torch.dtype:
        """The dtype of the first linear weight, which stands for the model's."""
        return self.dtype(next(iter(linear_names(self)), self.names()[0]))

    def companions(self) -> list[Path]:
        """The folder's small files: config, tokenizer, generation config, licence and the like.

        The config of weights with scales is that of the dequantized ones.
        """
        files = companions_of(self.path)
        if not self._quantized:
            return files
        self._rewritten = tempfile.TemporaryDirectory()  # for as long as this object is there
        plain = write_plain_config(self.path / "config.json", Path(self._rewritten.name))
        return [plain if file == self.path / "config.json" else file for file in files]

    def digest(self, name: str) -> str:
        """sha256 of the tensor's values, in hexadecimal digits."""
        if name not in self._digests:
            digest = hashlib.sha256()
            for piece in self._pieces(name):
                digest.update(tensor_bytes(piece))
            self._digests[name] = digest.hexdigest()
        return self._digests[name]

    def fingerprint(self) -> str:
        """What tells this model's weights from any other's, whatever files hold them."""
        return fingerprint(self)


def open_checkpoint(source: str | Path) -> Checkpoint:
    """A model folder or a hub id as a Checkpoint; InputError for whatever is missing, truncated or not a model."""
    return Checkpoint(source_folder(source), str(source))


def source_folder(source: str | Path) -> Path:
    """The folder that a model's name means, fetched from the hub where it is an id; InputError where there is none."""
    return _local_folder(source) or fetch_model(str(source))


def check_named(*sources: str | Path | None) -> None:
    """InputError for the first name that is neither a folder nor of a hub id's form, before any download; None is none.

    For commands that open several models: a mistyped second path is found before the first model is fetched.
    """
    for source in sources:
        if source is not None:
            _local_folder(source)


def _local_folder(source: str | Path) -> Path | None:
    """The model's folder, None where it has the form of a hub id; InputError for anything else."""
    text, path = str(source), user_path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{text!r} is a file; name the model folder that holds it, or a hub id")
    if not is_hub_id(text):
        raise InputError(f"model {text!r}: no such folder, and not a hub id of the form owner/name")
    return None


def _natural(name: str) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
