"""The weight files of a Hugging Face checkpoint folder: which there are, and what stands in each."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from impart.dtypes import DTYPES
from impart.errors import InputError, reason_of


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of a tensor that is or will be in a checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


def read_json(file: Path, owner: str) -> dict:
    if not file.is_file():
        raise InputError(f"{owner} has no {file.name}; is it a Hugging Face model folder?")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors, numbers too long, brackets too deep
        raise InputError(f"{file} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a JSON {type(content).__name__}, not an object; fetch it again")
    return content


def weight_files(path: Path, source: str) -> dict[Path, list[str]]:
    """Each weight file with the names that the index promises in it; safetensors before .bin where both are there."""
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (path / index).is_file():
            files: dict[Path, list[str]] = {}
            places = read_json(path / index, source).get("weight_map")
            if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
                raise InputError(
                    f"{path / index} has no weight_map that says which file holds which tensor; fetch it again"
                )
            for name, file in places.items():
                files.setdefault(path / file, []).append(name)
            for file in files:
                if not file.is_file():
                    raise InputError(
                        f"shard {file.name} of {source!r} is missing from {path}, though {index} lists it; "
                        "fetch it again"
                    )
            return files
        if (path / single).is_file():
            return {path / single: []}
    stray = sorted(file.name for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern))
    found = f"it has {stray[0]} but no index that says what is where" if stray else "it has no weights"
    raise InputError(
        f"{source!r} is not a readable checkpoint: {found} "
        "(expected model.safetensors or pytorch_model.bin, or their index.json)"
    )


def file_specs(file: Path) -> list[TensorSpec]:
    if file.suffix != ".safetensors":
        return [TensorSpec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in load_bin(file).items()]
    try:
        with safe_open(file, "pt") as shard:
            views = {name: shard.get_slice(name) for name in shard.keys()}
            return [TensorSpec(name, tuple(view.get_shape()), DTYPES[view.get_dtype()]) for name, view in views.items()]
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or truncated ({error}); fetch it again") from error
    except KeyError as error:
        raise InputError(
            f"{file} holds tensors of dtype {error}, which is not supported; take a 16-bit or fp32 checkpoint"
        ) from error


def file_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a weight file, in memory."""
    if file.suffix != ".safetensors":
        return load_bin(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is damaged or truncated ({error}); fetch it again") from error


def load_bin(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.bin` shard, mapped rather than read where its format allows it, and never unpickled freely."""
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and more for a damaged file
        raise InputError(
            f"{file} is damaged, truncated or not a plain file of weights ({reason_of(error)}); fetch it again"
        ) from error
    if not isinstance(weights, dict):
        raise InputError(f"{file} holds a {type(weights).__name__} instead of named tensors; is it a model's weights?")
    return {name: tensor for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)}
