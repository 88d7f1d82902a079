"""The sparse delta that `sparse_llama.py --sparsify_config` has made first, and the overrides that reach it."""

import logging
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from impart.artifact import Delta, is_delta, open_delta
from impart.config import check_keys, keys_of, read_layers
from impart.errors import InputError
from impart.sources import Origin
from quantize.settings import Config, sparse_methods

log = logging.getLogger(__name__)
BOTH = ("grid", "groupsize", "seed", "base_model")  # keys of both scripts, which then hold for both


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides that quantization reads, and those that go to sparsify_quant.py; InputError for all others."""
    layers = read_layers(None, overrides)
    check_keys(layers, [Config, Origin, *sparse_methods()])
    mine, values = keys_of(Config), layers[-1].values
    own, handed = [], []
    for text in overrides:
        key, _, value = text.partition("=")
        name = mine[key].name if key in mine else key
        if key in mine and not _is_entry_bits(key, values[key]):
            own.append(text)
        if key not in mine or key in BOTH or name == "method" or _is_entry_bits(key, values[key]):
            handed.append(text)
        elif name == "baseModel":
            handed.append(f"base_model={value}")
    return own, handed


def sparsify_first(flags: Namespace, overrides: Sequence[str]) -> None:
    """Runs sparsify_quant.py into saved_delta_path, unless a finished delta of these settings is there."""
    if Path(flags.saved_delta_path).exists() and not flags.overwrite:
        if is_delta(flags.saved_delta_path):
            check_made_by(flags.saved_delta_path, overrides)
        log.info("%s is there and is used as it is; --overwrite replaces it", flags.saved_delta_path)
        return
    script = Path(__file__).resolve().parents[1] / "sparsify" / "sparsify_quant.py"
    command = [
        sys.executable,
        str(script),
        *(word for file in flags.sparsify_config for word in ("--config", file)),
        "--device",
        flags.device,
        "--threads",
        str(flags.threads),
        *overrides,
        f"save_dir={flags.saved_delta_path}",
        *(f"--{flag}" for flag in ("overwrite", "force", "dry_run") if getattr(flags, flag)),
    ]
    code = subprocess.run(command).returncode
    if code:
        sys.exit(code)  # it has said why


def check_made_by(path: str, overrides: Sequence[str]) -> None:
    """InputError for an override that an existing sparse delta was not made with."""
    manifest = open_delta(path).manifest
    held: Mapping[str, Any] = {**manifest["settings"], "method": manifest["method"], "seed": manifest["seed"]}
    names = {alias: field.name for cls in sparse_methods() for alias, field in keys_of(cls).items()}
    for key, value in read_layers(None, overrides)[-1].values.items():
        name = names.get(key, key)
        if name == "compression_ratio" and name not in held:
            name = "compression_ratio_qt"  # one ratio for both scripts, as the authors have it
        if name in held and value != "auto" and held[name] != value:
            raise InputError(
                f"{key}={value} does not fit {path!r}, which an earlier run made with {name}={held[name]}; add "
                "--overwrite to replace it, or name another --save_compressed_delta_dir"
            )


def check_method(method: str | None, manifest: Mapping[str, Any]) -> None:
    """InputError where the settings name another sparsification than the delta's."""
    if method is not None and method != manifest["method"]:
        raise InputError(
            f"method: {method} does not fit this delta, which is of method {manifest['method']}; leave it out, or give "
            "the delta that sparsify_quant.py made with it"
        )


def check_quantizable(delta: Delta) -> None:
    """InputError for a matrix that is neither factors nor entries of dW, which is what sparse GPTQ knows."""
    for name, entry in delta.manifest["matrices"].items():
        if "head" in entry:
            raise InputError(
                f"{str(delta.path)!r} holds {name} as {entry['encoding']}, a sum that sparse GPTQ does not quantize; "
                f"method={delta.manifest['method']} without a sparse delta makes its quantized form from the two models"
            )


def refuse_sparse_delta(flags: Namespace, method: str) -> None:
    """InputError where a sparse delta is given to a method that reads the two models."""
    for flag in ("sparsify_config", "saved_delta_path"):
        if getattr(flags, flag):
            raise InputError(
                f"--{flag} gives a sparse delta, but method={method} reads the two models and no sparse delta; leave "
                "one of them out"
            )


def _is_entry_bits(key: str, value: Any) -> bool:
    """Whether `bits` is DARE's, one number, and not the list of the authors' YAML files."""
    return key == "bits" and isinstance(value, int)
