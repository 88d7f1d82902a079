"""The settings of a merge: the method, the models, and the weight and mask of each model's task vector."""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from impart import dtypes
from impart.config import Layer, check_keys, describe, fill, keys_of, load, option, read_layers
from impart.errors import InputError
from impart.pair import Pair
from merge.method import MergeMethod, parse_method
from merge.premask import PreMask
from sparsify.faces import SparseMethod
from sparsify.settings import methods

NAMED = ("math", "code", "chat")  # the authors' README has one flag for each


@dataclass(frozen=True)
class Config:
    """The keys from `mask` to `seed` hold for every model whose entry in `models` does not say otherwise."""

    merge_method: str = option(
        help="avg, ta_<lambda>, ties_<trim>_<lambda> (trim: share of entries set to zero, 1 minus "
        "the paper's retain ratio), or the method of another file in merge/methods/"
    )
    ptm_pth: str = option(help="base model: folder or hub id", aliases=("base_model", "ptm_dir"))
    save_pth: str = option(help="folder of the merged model", aliases=("save_path", "save_dir"))
    math_pth: str | None = option(None, help="fine-tuned model for math: checkpoint (folder or hub id) or delta")
    code_pth: str | None = option(None, help="fine-tuned model for code")
    chat_pth: str | None = option(None, help="fine-tuned model for chat")
    models: dict = option(
        {},
        help="more models, name: path or name: {path, weight, mask, sparsity, seed, and "
        "keys of the mask's method}; as overrides models.math.weight=0.5",
    )
    trim_scope: str = option(
        "tensor",
        help="what ties trims: the smallest entries of each tensor, or of all tensors of a model together",
        choices=("tensor", "model"),
    )
    mask: str = option(
        "none", help="none, or the sparsification method that each linear weight's delta goes through first"
    )
    sparsity: float | None = option(None, help="share of the delta that the mask removes, A = 1 - 1 / CR", low=0.0)
    mask_keys: dict = option({}, help="further keys of the mask's method, which may also stand by themselves")
    seed: int = option(0, help="of the masks; hashed with each model's name, unless the model has a seed", low=0)
    dtype: str = option(
        "auto",
        help="of the merged weights; auto: the models' own, the base's where they differ",
        choices=dtypes.choices("auto"),
    )
    tokenizer: str = option(
        "base",
        help="base or a model's name: whose tokenizer, chat template, config and "
        "generation config the merged model gets; tokens that it lacks are added to it",
    )


@dataclass(frozen=True)
class ModelSettings:
    """One entry of `models`; a missing key is taken from the key of the same name in Config."""

    path: str = option(help="checkpoint (folder or hub id) or delta artifact")
    weight: float = option(1.0, help="factor of this model's task vector; in ties and avg its share in the mean")
    mask: str = option("none", help="none, or a sparsification method")
    sparsity: float | None = option(None, help="share of the delta that the mask removes", low=0.0)
    seed: int = option(0, help="seed of this model's masks, as sparsify.py would take it", low=0)


@dataclass(frozen=True)
class ModelEntry:
    """One fine-tuned model of a merge, resolved. `premask` is None where the delta is merged as it is."""

    name: str
    path: str
    weight: float
    premask: PreMask | None


def load_config(
    paths: Sequence[str] | None,
    flags: Mapping[str, str | None],
    model_flags: Sequence[str],
    overrides: Sequence[str],
) -> Config:
    """The YAML files, then the authors' flags, then --model name=path[:weight], then key=value; later ones win.

    InputError for a model that one place gives two paths: the merge would silently lack the first.
    """
    nested = [text for text in overrides if text.startswith("models.")]
    plain = [text for text in overrides if not text.startswith("models.")]
    given = [f"{key}={_yaml(value)}" for key, value in flags.items() if value is not None]
    _refuse_repeated(given + plain)
    layers = read_layers(paths, given + plain)
    check_keys(layers, [Config, *masks().values()], also=[Pair])
    config = fill(Config, layers)
    mask_keys = {key: value for layer in layers for key, value in _of_masks(layer.values).items()}
    models = _models(config, layers)
    command_line = {name for name in NAMED if f"{name}_pth" in layers[-1].values}
    for name, entry in map(_model_flag, model_flags):
        if name in command_line:
            raise InputError(
                f"model {name!r} is given twice, at last as --model {name}={entry['path']}, and the first one would "
                "be lost; take another name"
            )
        command_line.add(name)
        models.setdefault(name, {}).update(entry)
    for text in nested:
        key, _, value = text.partition("=")
        parts = key.split(".")
        if len(parts) != 3 or not value:
            raise InputError(f"override {text!r} is not of the form models.NAME.KEY=value")
        if parts[2] == "path" and parts[1] in command_line:
            raise InputError(f"model {parts[1]!r} is given twice, at last as {text}; take another name")
        command_line |= {parts[1]} if parts[2] == "path" else set()
        models.setdefault(parts[1], {})[parts[2]] = load(_One, None, [f"value={value}"]).value
    return replace(
        config,
        ptm_pth=os.path.expanduser(config.ptm_pth),
        save_pth=os.path.expanduser(config.save_pth),
        models={name: _expanded(entry) for name, entry in models.items()},
        mask_keys={**mask_keys, **config.mask_keys},
        dtype=dtypes.long_name(config.dtype),
    )


def resolve(config: Config) -> tuple[MergeMethod, list[ModelEntry]]:
    """The method and every model with its weight and mask; InputError for contradictory or missing settings."""
    try:
        method = parse_method(config.merge_method)
    except ValueError as error:
        raise InputError(f"merge_method: {error}") from error
    if config.trim_scope == "model" and method.trimmed_share == 0:
        raise InputError(f"trim_scope=model: {method} trims nothing; leave the key out, or take ties_<trim>_<lambda>")
    if not config.models:
        raise InputError("there is no model to merge; give math_pth, code_pth, chat_pth or --model name=path")
    if "base" in config.models:
        raise InputError("a model cannot be called 'base', which is the name of ptm_pth; take another name")
    entries = [_entry(config, name, values) for name, values in sorted(config.models.items())]
    for entry in entries:
        try:
            method.check_weight(entry.weight)
        except ValueError as error:
            raise InputError(f"models.{entry.name}: {error}") from error
    if config.tokenizer != "base" and config.tokenizer not in config.models:
        names = ", ".join(config.models)
        raise InputError(f"tokenizer={config.tokenizer!r} is neither base nor one of the models: {names}")
    return method, entries


def _refuse_repeated(given: Sequence[str]) -> None:
    """InputError for a model's key that the command line gives twice with different values."""
    first: dict[str, str] = {}
    for text in given:
        key, _, value = text.partition("=")
        if key.removesuffix("_pth") in NAMED and first.setdefault(key, value) != value:
            raise InputError(
                f"{key} is given twice, as {first[key].strip()} and as {value.strip()}, and one model would be lost; "
                f"give one of them as --model NAME={value.strip()}"
            )


def _models(config: Config, layers: Sequence[Layer]) -> dict[str, dict[str, Any]]:
    """The entries of `models` and of the keys math_pth, code_pth, chat_pth, as mappings with a path.

    The later layer wins; one layer that gives a model two paths is an InputError.
    """
    entries = {
        str(name): dict(value) if isinstance(value, dict) else {"path": value} for name, value in config.models.items()
    }
    named: dict[str, dict[str, Any]] = {}
    for name in NAMED:
        path, entry = getattr(config, f"{name}_pth"), entries.pop(name, None)
        if path is None:
            named |= {name: entry} if entry is not None else {}
            continue
        entry = entry or {}
        flag, listed = _last_with(layers, f"{name}_pth"), _last_with(layers, "models")
        if "path" in entry and flag is listed and entry["path"] != path:
            raise InputError(
                f"model {name!r} is given twice in {flag.origin}, as {name}_pth: {path} and as models.{name}: "
                f"{entry['path']}; take another name for one of them"
            )
        wins = "path" in entry and layers.index(listed) > layers.index(flag)
        named[name] = entry if wins else {**entry, "path": path}
    return named | entries


def _last_with(layers: Sequence[Layer], key: str) -> Layer:
    """The last layer that gives the key; the first one where none does."""
    return next((layer for layer in reversed(layers) if key in layer.values), layers[0])


def _expanded(entry: dict[str, Any]) -> dict[str, Any]:
    """A model's entry with ~ in its path replaced by the home folder."""
    path = entry.get("path")
    return {**entry, "path": os.path.expanduser(path)} if isinstance(path, str) else entry


@dataclass(frozen=True)
class _One:
    """Any single value, so that a nested override is parsed like every other override."""

    value: Any = option(help="the value")


def _model_flag(text: str) -> tuple[str, dict[str, Any]]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise InputError(f"--model {text!r} is not of the form name=path or name=path:weight")
    head, colon, tail = path.rpartition(":")
    try:
        return name, {"path": head, "weight": float(tail)} if colon and head else {"path": path}
    except ValueError:
        return name, {"path": path}  # a colon that belongs to the path


def _entry(config: Config, name: str, values: dict[str, Any]) -> ModelEntry:
    """One model; keys that its entry does not set are taken from the shared keys."""
    shared: dict[str, Any] = {"mask": config.mask, **config.mask_keys}
    if {"sparsity", "compression_ratio"} & set(values):
        shared.pop("compression_ratio", None)
    else:
        shared["sparsity"] = config.sparsity
    layers = [Layer("the shared keys", shared, is_file=False), Layer(f"models.{name}", values, is_file=False)]
    try:
        check_keys(layers, [ModelSettings, *masks().values()])
        settings = fill(ModelSettings, layers)
        seed = settings.seed if "seed" in values else model_seed(config.seed, name)
        premask = _premask(settings, layers, seed)
    except InputError as error:
        raise InputError(f"models.{name}: {error}") from error
    if not math.isfinite(settings.weight):
        raise InputError(f"models.{name}.weight={settings.weight} must be a finite number")
    return ModelEntry(name, settings.path, settings.weight, premask)


def model_seed(seed: int, name: str) -> int:
    """Another seed for every model: with one seed for all, the same entries of every delta would stay."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{name}".encode()).digest()[:4], "little")


def _premask(settings: ModelSettings, layers: Sequence[Layer], seed: int) -> PreMask | None:
    """The mask's method with its keys and the ratio that one of sparsity and compression_ratio gives."""
    if settings.mask == "none":
        return None
    if settings.mask not in masks():
        raise InputError(f"mask: {settings.mask} is not one of none, {', '.join(masks())}")
    ratios = [
        layer.values["compression_ratio"] for layer in layers if layer.values.get("compression_ratio") is not None
    ]
    if (settings.sparsity is None) == (not ratios):
        raise InputError(
            f"mask {settings.mask} needs either sparsity (0.9) or compression_ratio (10){', not both' * bool(ratios)}"
        )
    if settings.sparsity is not None and settings.sparsity >= 1:
        raise InputError(f"sparsity={settings.sparsity:g} removes everything; it must be below 1")
    keys = [Layer(layer.origin, _of_masks(layer.values), layer.is_file) for layer in layers]
    if settings.sparsity is not None:
        keys.append(Layer("sparsity", {"compression_ratio": 1 / (1 - settings.sparsity)}, is_file=False))
    method = fill(masks()[settings.mask], keys, needed_by=f"mask {settings.mask}").resolved()
    if method.needs_all:
        raise InputError(
            f"mask {settings.mask}: a merge masks one matrix at a time, and these settings divide one budget among all "
            "of them; leave `information` out, or merge the delta that sparsify.py makes with it"
        )
    return PreMask(method, seed)


def masks() -> dict[str, type[SparseMethod]]:
    """The sparsification methods that a delta can go through before it is merged."""
    return {
        name: cls for name, cls in methods("sparse").items() if issubclass(cls, SparseMethod) and cls.usable_as_mask
    }


def described_masks() -> list[str]:
    """The keys of every mask's method, for --help."""
    return [describe(cls, f"keys of mask {name}, for all models or for one:") for name, cls in masks().items()]


def mask_key_names() -> set[str]:
    """Every key of a mask's method that a merge may set: those whose names mean nothing else here."""
    return {key for cls in masks().values() for key in keys_of(cls)} - set(keys_of(Config))


def _of_masks(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a layer that belong to the masks' methods."""
    return {key: value for key, value in values.items() if key in mask_key_names() and value is not None}


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6)
