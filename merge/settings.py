"""What a merge is told: the method, the models and what is done to each of their task vectors before merging."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from impart import dtypes
from impart.config import Layer, check_keys, describe, fill, keys_of, load, option, read_layers
from impart.errors import InputError
from impart.pair import Pair
from merge.methods import Method, parse_method
from merge.premask import PreMask
from sparsify.faces import SparseMethod
from sparsify.settings import methods

NAMED = ("math", "code", "chat")  # the authors' README has one flag for each


@dataclass(frozen=True)
class Config:
    """The keys from `mask` to `seed` hold for every model whose entry in `models` does not say otherwise."""

    merge_method: str = option(
        help="ta_<lambda>, ties_<trim>_<lambda> (trim: share of entries set to zero, 1 minus "
        "the paper's retain ratio) or avg"
    )
    ptm_pth: str = option(help="base model: folder or hub id", aliases=("base_model", "ptm_dir"))
    save_pth: str = option(help="folder of the merged model", aliases=("save_path", "save_dir"))
    math_pth: str | None = option(None, help="fine-tuned model for math: checkpoint (folder or hub id) or delta")
    code_pth: str | None = option(None, help="the same for code")
    chat_pth: str | None = option(None, help="the same for chat")
    models: dict = option(
        {},
        help="more models, name: path or name: {path, weight, mask, sparsity, seed, and "
        "keys of the mask's method}; as overrides models.math.weight=0.5",
    )
    mask: str = option(
        "none", help="none, or the sparsification method that each linear weight's delta goes through first"
    )
    sparsity: float | None = option(None, help="share of the delta that the mask removes, A = 1 - 1 / CR", low=0.0)
    mask_keys: dict = option({}, help="further keys of the mask's method, which may also stand by themselves")
    seed: int = option(0, help="decides every mask, together with the model's name unless the model has its own", low=0)
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
    """One entry of `models`; what is absent is taken from the keys of the same name in Config."""

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
    paths: Sequence[str] | None, flags: dict[str, str | None], model_flags: Sequence[str], overrides: Sequence[str]
) -> Config:
    """The YAML files, then the authors' flags, then --model name=path[:weight], then key=value: the last one holds."""
    nested = [text for text in overrides if text.startswith("models.")]
    plain = [text for text in overrides if not text.startswith("models.")]
    given = [f"{key}={_yaml(value)}" for key, value in flags.items() if value is not None]
    layers = read_layers(paths, given + plain)
    check_keys(layers, [Config, *masks().values()], also=[Pair])
    config = fill(Config, layers)
    mask_keys = {key: value for layer in layers for key, value in layer.values.items() if key not in keys_of(Config)}
    mask_keys = {key: value for key, value in mask_keys.items() if key in mask_key_names()}
    models = {
        str(name): dict(value) if isinstance(value, dict) else {"path": value} for name, value in config.models.items()
    }
    from_flags = [_model_flag(text) for text in model_flags]
    for name, entry in from_flags:
        if [other for other, _ in from_flags].count(name) > 1:
            raise InputError(f"--model gives {name!r} twice, and the first one would be lost; take another name")
        models.setdefault(name, {}).update(entry)
    for text in nested:
        key, _, value = text.partition("=")
        parts = key.split(".")
        if len(parts) != 3 or not value:
            raise InputError(f"override {text!r} is not of the form models.NAME.KEY=value")
        models.setdefault(parts[1], {})[parts[2]] = load(_One, None, [f"value={value}"]).value
    dtype = dtypes.long_name(config.dtype)
    return replace(config, models=models, mask_keys={**mask_keys, **config.mask_keys}, dtype=dtype)


def resolve(config: Config) -> tuple[Method, list[ModelEntry]]:
    """The method and every model with its weight and mask; InputError for whatever contradicts or lacks."""
    try:
        method = parse_method(config.merge_method)
    except ValueError as error:
        raise InputError(f"merge_method: {error}") from error
    given: dict[str, dict[str, Any]] = {
        name: {"path": getattr(config, f"{name}_pth")} for name in NAMED if getattr(config, f"{name}_pth") is not None
    }
    for name, entry in config.models.items():
        given.setdefault(name, {}).update(entry)
    if not given:
        raise InputError("there is no model to merge; give math_pth, code_pth, chat_pth or --model name=path")
    if "base" in given:
        raise InputError("a model cannot be called 'base', which is the name of ptm_pth; take another name")
    entries = [_entry(config, name, values) for name, values in sorted(given.items())]
    if method.kind != "ta":
        for entry in entries:
            if not entry.weight > 0:
                raise InputError(
                    f"models.{entry.name}.weight={entry.weight:g} must be positive with {method}; only "
                    "task arithmetic can subtract a model"
                )
    if config.tokenizer != "base" and config.tokenizer not in given:
        raise InputError(f"tokenizer={config.tokenizer!r} is neither base nor one of the models: {', '.join(given)}")
    return method, entries


@dataclass(frozen=True)
class _One:
    """Any single value, so that a nested override is read by the rules of every other one."""

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
    """One model with what it does not say itself taken from the shared keys."""
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
    """A seed of its own for every model: one seed for all would keep the same entries of every delta."""
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
    own = [Layer(layer.origin, _of_method(layer.values), layer.is_file) for layer in layers]
    if settings.sparsity is not None:
        own.append(Layer("sparsity", {"compression_ratio": 1 / (1 - settings.sparsity)}, is_file=False))
    return PreMask(fill(masks()[settings.mask], own, needed_by=f"mask {settings.mask}").resolved(), seed)


def masks() -> dict[str, type[SparseMethod]]:
    """The sparsification methods that a delta can go through before it is merged."""
    return {name: cls for name, cls in methods("sparse").items() if cls.usable_as_mask}


def described_masks() -> list[str]:
    """The keys of every mask's method, for --help."""
    return [describe(cls, f"keys of mask {name}, for all models or for one:") for name, cls in masks().items()]


def mask_key_names() -> set[str]:
    """Every key of a mask's method that a merge may set: those whose names mean nothing else here."""
    return {key for cls in masks().values() for key in keys_of(cls)} - set(keys_of(Config))


def _of_method(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in mask_key_names() and value is not None}


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6)
