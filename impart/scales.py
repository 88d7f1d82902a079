"""Weights in 8-bit floating point with scales, as DeepSeek-V3, Qwen3-FP8 and compressed-tensors store them.

A weight is its stored value times its scale: one for blocks of 128 x 128 (`weight_scale_inv`), for each row, or for all
(`weight_scale`). Multiplied in fp32 and rounded once to the dtype of the config, as DeepSeek's fp8_cast_bf16.py does,
they are the 16-bit model; scales and quantization_config are no part of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from impart.architecture import TEXT_CONFIGS
from impart.dtypes import DTYPE_NAMES, long_name
from impart.errors import InputError
from impart.weight_files import TensorSpec, load_bin

EIGHT_BIT = (torch.float8_e4m3fn, torch.float8_e5m2)
SUFFIXES = ("_scale_inv", "_scale")  # both are factors of the weight
OF_ACTIVATIONS = (".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale", ".activation_scale")
BLOCK = (128, 128)  # rows and columns, where the config does not tell
QUANTIZATION = "quantization_config"


@dataclass(frozen=True)
class Scale:
    """The factors of one weight: the tensor `name` of `file`, each for `rows` x `columns` entries."""

    name: str
    file: Path
    rows: int
    columns: int
    dtype: torch.dtype  # of the product

    def product(self, piece: Tensor, start: int) -> Tensor:
        """The weights of a piece of the stored tensor: its rows, or where it is 3-D its matrices, from `start` on."""
        scale = _read(self.file, self.name).float()
        if piece.ndim == 3:
            rows = torch.arange(piece.shape[1]) // self.rows
            scale = scale[start : start + len(piece)][:, rows]
        else:
            scale = scale.view(-1, 1 if scale.ndim < 2 else scale.shape[1])
            scale = scale[torch.arange(start, start + len(piece)) // self.rows]
        columns = torch.arange(piece.shape[-1]) // self.columns
        return (piece.float() * scale[..., columns]).to(self.dtype)


def find_scales(
    specs: Mapping[str, TensorSpec], files: Mapping[str, Path], config: Mapping[str, Any], source: str
) -> dict[str, Scale]:
    """The scale of every 8-bit float weight that has one; InputError where the two do not fit."""
    found = {}
    for name, spec in specs.items():
        scale = next((specs[name + suffix] for suffix in SUFFIXES if name + suffix in specs), None)
        if scale is not None and spec.dtype in EIGHT_BIT and len(spec.shape) in (2, 3):
            block = _entries_of(scale.shape, spec.shape, _block(config))
            if block is None:
                raise InputError(
                    f"{scale.name} of {source!r} has shape {list(scale.shape)}, which gives {name} of shape "
                    f"{list(spec.shape)} no scale for blocks of {' x '.join(map(str, _block(config)))}, rows, or all; "
                    "give the 16-bit model"
                )
            found[name] = Scale(scale.name, files[scale.name], *block, _dtype(config))
    return found


def unscaled(specs: Mapping[str, TensorSpec], scales: Mapping[str, Scale]) -> dict[str, TensorSpec]:
    """The tensors of the dequantized model."""
    if not scales:
        return dict(specs)
    left_out = {scale.name for scale in scales.values()}
    kept = {name: spec for name, spec in specs.items() if name not in left_out and not name.endswith(OF_ACTIVATIONS)}
    return kept | {name: TensorSpec(name, specs[name].shape, scale.dtype) for name, scale in scales.items()}


def write_plain_config(file: Path, folder: Path) -> Path:
    """A config.json without its quantization, in `folder`."""
    settings = json.loads(file.read_text(encoding="utf-8-sig"))
    for part in (settings, *(settings.get(key) for key in TEXT_CONFIGS)):
        if isinstance(part, dict):
            part.pop(QUANTIZATION, None)
    copy = folder / file.name
    copy.write_text(json.dumps(settings, indent=2) + "\n")
    return copy


def _entries_of(scale: Sequence[int], weight: Sequence[int], block: tuple[int, int]) -> tuple[int, int] | None:
    """How many rows and columns of a weight (..., m, n) one factor is for; None where the shapes do not fit."""
    *experts, rows, columns = scale if len(scale) > 1 else (*scale, 1)[-2:] if scale else (1, 1)
    if experts != list(weight[:-2]):
        return None
    entries = []
    for count, length, size in zip((rows, columns), weight[-2:], block, strict=True):
        step = next((step for step in (length, 1, size) if -(-length // step) == count), None)
        if step is None:
            return None
        entries.append(step)
    return entries[0], entries[1]


def _block(config: Mapping[str, Any]) -> tuple[int, int]:
    """weight_block_size of a DeepSeek config, block_structure of compressed-tensors."""
    settings = config.get(QUANTIZATION)
    settings = settings if isinstance(settings, dict) else {}
    groups = settings.get("config_groups")
    weights = [group.get("weights") for group in groups.values()] if isinstance(groups, dict) else []
    given = [settings.get("weight_block_size"), *(part.get("block_structure") for part in weights if part)]
    for size in given:
        if isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size):
            return size[0], size[1]
    return BLOCK


def _dtype(config: Mapping[str, Any]) -> torch.dtype:
    """What the config says that the model computes in; bf16 where it says nothing."""
    parts = [config, *(config[key] for key in TEXT_CONFIGS if isinstance(config.get(key), dict))]
    stated = next((part[key] for part in parts for key in ("dtype", "torch_dtype") if part.get(key)), "bf16")
    return {long_name(dtype): dtype for dtype in DTYPE_NAMES.values()}.get(long_name(stated), torch.bfloat16)


def _read(file: Path, name: str) -> Tensor:
    if file.suffix != ".safetensors":
        return load_bin(file)[name].detach()
    with safe_open(file, "pt") as shard:
        return shard.get_tensor(name)
