"""The weight files of a Hugging Face checkpoint folder: which there are, and what stands in each."""

import json
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from impart.companions import is_plain_name
from impart.dtypes import DTYPE_CODES, DTYPES
from impart.errors import InputError, reason_of

log = logging.getLogger(__name__)

# Single file and index of each format, in the order in which transformers looks for them.
FORMATS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


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
        content = json.loads(file.read_text(encoding="utf-8-sig"))  # some editors put a byte-order mark first
    except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors, numbers too long, brackets too deep
        raise InputError(f"{file} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a JSON {type(content).__name__}, not an object; fetch it again")
    return content


def weight_files(path: Path, source: str) -> dict[Path, list[str]]:
    """Each weight file with the names that the index promises in it, chosen as transformers chooses.

    Safetensors come before .bin, and a single file before an index, which may be left from an earlier save in shards.
    """
    for single, index in FORMATS:
        if (path / single).is_file():
            if (path / index).is_file():
                log.warning("%s is read; %s beside it is a leftover of another save", path / single, index)
            return {path / single: []}
        if (path / index).is_file():
            return _indexed(path, index, source)
    stray = sorted(file.name for pattern in ("*.safetensors", "*.bin") for file in path.glob(pattern))
    found = f"it has {stray[0]} but no index that says what is where" if stray else "it has no weights"
    raise InputError(
        f"{source!r} is not a readable checkpoint: {found} "
        "(expected model.safetensors or pytorch_model.bin, or their index.json)"
    )


def stale_index(path: Path) -> Path | None:
    """The index of a safetensors checkpoint that stands beside the single file which is read."""
    single, index = FORMATS[0]
    return path / index if (path / single).is_file() and (path / index).is_file() else None


def _indexed(path: Path, index: str, source: str) -> dict[Path, list[str]]:
    """The shards that an index lists, each with its names; InputError unless all are files of that folder."""
    places = read_json(path / index, source).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{path / index} has no weight_map that says which file holds which tensor; fetch it again")
    files: dict[Path, list[str]] = {}
    for name, file in places.items():
        if not isinstance(file, str) or not is_plain_name(file):
            raise InputError(f"{path / index} names {str(file)[:80]!r}, which is no name of a file; fetch it again")
        files.setdefault(path / file, []).append(name)
    for file in files:
        if not file.is_file():
            raise InputError(
                f"shard {file.name} of {source!r} is missing from {path}, though {index} lists it; fetch it again"
            )
    return files


def file_specs(file: Path) -> list[TensorSpec]:
    """Name, shape and dtype of each tensor in a weight file."""
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
    tensors = {name: tensor for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)}
    nested = next((name for name, part in weights.items() if _holds_tensors(part)), None)
    if nested is not None:
        raise InputError(
            f"{file} holds its tensors below {nested!r}, as a trainer's checkpoint does; save that part alone: "
            f"torch.save(torch.load(file)[{nested!r}], file)"
        )
    if not tensors:
        raise InputError(f"{file} holds no tensors; is it a model's weights?")
    for name, tensor in tensors.items():
        _check_dense(file, name, tensor)
    return tensors


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's values as bytes in row-major order, without a copy where it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def refuse_wrapped(names: list[str], source: str) -> None:
    """InputError where every name has a prefix of a wrapper, under which no model class would look for it."""
    for prefix in WRAPPERS:
        if names and all(name.startswith(prefix) for name in names):
            raise InputError(
                f"every tensor of {source!r} is called {prefix}..., as a wrapped model saves them; save the model "
                "inside of the wrapper"
            )


def _holds_tensors(part: object) -> bool:
    return isinstance(part, dict) and any(isinstance(value, torch.Tensor) for value in part.values())


def _check_dense(file: Path, name: object, tensor: torch.Tensor) -> None:
    """InputError for what is no plain array of numbers with a text for its name."""
    if not isinstance(name, str):
        raise InputError(f"{file} calls a tensor {name!r}, which is no text; is it a model's weights?")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.dtype not in DTYPE_CODES:
        kind = f"{str(tensor.layout).removeprefix('torch.')} {tensor.dtype} on {tensor.device}"
        raise InputError(f"{file}: {name} is no dense array of numbers ({kind}); save the dense weights")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise InputError(f"{file}: {name} of shape {list(tensor.shape)} repeats fewer stored values; save it whole")
