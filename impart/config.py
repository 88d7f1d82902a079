"""YAML files and `key=value` overrides into frozen dataclasses, validated before anything else happens.

A script declares its settings once, as a dataclass whose fields are made by `option`; `load` fills it from any number
of YAML files and overrides (layers: a later one wins, key by key), `describe` prints it for --help, and `config_parser`
gives the flags that all scripts with a config share.
"""

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from impart.errors import InputError
from impart.files import user_path
from impart.yaml_text import parse_yaml

REQUIRED = dataclasses.MISSING
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse whose usage errors are InputErrors, with --debug."""

    def __init__(self, doc: str | None, **keywords):
        super().__init__(
            description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **keywords
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str):
        raise InputError(f"{message}; `{Path(self.prog).name} --help` lists all flags")


def option(
    default: Any = REQUIRED,
    *,
    help: str,
    unit: str = "",
    choices: Sequence | None = None,
    aliases: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    words: Sequence[str] = (),
) -> Any:
    """A dataclass field with what --help and the validation need.

    `low` and `high` are inclusive; `words` are the texts that a key of another type also takes.
    """
    metadata = {
        "help": help,
        "unit": unit,
        "choices": choices,
        "aliases": tuple(aliases),
        "low": low,
        "high": high,
        "words": tuple(words),
    }
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Layer:
    """The keys that one place gives: a YAML file, or the command line, which is the last layer."""

    origin: str
    values: dict[str, Any]
    is_file: bool


def read_layers(paths: str | Path | Sequence[str | Path] | None, overrides: Sequence[str] = ()) -> list[Layer]:
    """The YAML files in their order, then all `key=value` overrides; later layers win."""
    files = [paths] if isinstance(paths, str | Path) else paths or []
    layers = [Layer(str(path), _read_yaml(user_path(path)), is_file=True) for path in files]
    given: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError(f"override {text!r} is not of the form key=value, without spaces")
        given[key] = parse_yaml(value, f"override {text!r}")
    return [*layers, Layer("the command line", given, is_file=False)]


def load(
    cls: type[T],
    paths: str | Path | Sequence[str | Path] | None,
    overrides: Sequence[str] = (),
    also: Sequence[type] = (),
) -> T:
    """Reads YAML mappings, applies `key=value` overrides, checks every key, type and range, and returns `cls(...)`.

    `also`: dataclasses whose keys may stand in the files although `cls` does not read them, such as Pair.
    """
    layers = read_layers(paths, overrides)
    check_keys(layers, [cls], also)
    return fill(cls, layers)


def check_keys(layers: Sequence[Layer], classes: Sequence[type], also: Sequence[type] = ()) -> None:
    """InputError for the first key that is no field of `classes`, nor in a file of those of `also`."""
    read = {alias: field.name for cls in classes for alias, field in keys_of(cls).items()}
    in_files = {alias for cls in also for alias in keys_of(cls)}
    for layer in layers:
        for key in layer.values:
            if key in read or (layer.is_file and key in in_files):
                continue
            near = difflib.get_close_matches(str(key), read, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(dict.fromkeys(read.values()))}"
            elsewhere = "; it belongs into a YAML file" if key in in_files else ""
            raise InputError(f"unknown key {key!r} in {layer.origin}{elsewhere}; {remedy}")


def keys_of(cls: type) -> dict[str, dataclasses.Field]:
    """Every name and alias of the fields of a settings dataclass."""
    fields = dataclasses.fields(cls)
    return {alias: field for field in fields for alias in (field.name, *field.metadata["aliases"])}


def fill(cls: type[T], layers: Sequence[Layer], needed_by: str = "") -> T:
    """The dataclass from its keys in the layers, checked; other keys are left alone.

    `needed_by` says for whom a key is wanted that is missing everywhere: `method impart`.
    """
    keys = keys_of(cls)
    values: dict[str, Any] = {}
    for layer in layers:
        values |= _by_name(layer, keys)
    types_of = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    checked = {name: _checked(value, types_of[name], fields[name]) for name, value in values.items()}
    for name, field in fields.items():
        if name not in checked and field.default is REQUIRED and field.default_factory is REQUIRED:
            origin = ", ".join(layer.origin for layer in layers if layer.is_file) or "the command line"
            missing = (
                f"{name} is missing, and {needed_by} needs it"
                if needed_by
                else f"key {name!r} is missing from {origin}"
            )
            raise InputError(f"{missing}: {field.metadata['help']}")
    return cls(**checked)


def describe(cls: type, title: str = "keys of the YAML files, also as key=value overrides:") -> str:
    """Every key with type, default, unit, choices and meaning, one line each, for --help."""
    types_of, lines = typing.get_type_hints(cls), [title]
    for field in dataclasses.fields(cls):
        meta = field.metadata
        default = field.default_factory() if field.default_factory is not REQUIRED else field.default
        facts = [
            " or ".join((_type_name(types_of[field.name]), *meta["words"])),
            "required" if default is REQUIRED else f"default {_yaml(default)}",
        ]
        facts += [f"unit: {meta['unit']}"] if meta["unit"] else []
        facts += [f"one of {', '.join(map(_yaml, meta['choices']))}"] if meta["choices"] else []
        facts += [f"also called {', '.join(meta['aliases'])}"] if meta["aliases"] else []
        lines.append(f"  {field.name}: {meta['help']} ({'; '.join(facts)})")
    return "\n".join(lines)


def as_dict(config) -> dict:
    """The resolved settings as plain values, for reports and manifests."""
    return dataclasses.asdict(config)


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Where a command computes."""
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="CPU threads of the arithmetic (default: all cores); results are equal for equal counts",
    )


def add_run_flags(parser: argparse.ArgumentParser, long: bool = True) -> None:
    """The flags of every command that computes: where it runs, and whether it may replace what exists.

    A command that takes `long` can also tell beforehand how long.
    """
    add_device_flags(parser)
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace an existing result")
    existing.add_argument(
        "--skip_existing", action="store_true", help="do nothing where the result is there, for loops that run again"
    )
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="tell only warnings and the result")
    loudness.add_argument("--verbose", action="store_true", help="tell what the libraries say as well")
    if long:
        parser.add_argument(
            "--dry_run", action="store_true", help="check everything and tell time, memory and disk; write nothing"
        )
    parser.add_argument(
        "--force",
        action="store_true",
        help="go on with a model that does not seem to be fine-tuned from the base, or is given twice",
    )


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """--config, which may be repeated, and any number of key=value overrides."""
    parser.add_argument(
        "--config", action="append", help="YAML file with the keys below; may be given several times, later ones win"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the YAML files")


def config_parser(cls: type, doc: str | None, *more: str) -> Parser:
    """--config, the common flags and overrides; `more` are further parts of --help."""
    parser = Parser(doc, epilog="\n\n".join([describe(cls), *more]))
    add_run_flags(parser)
    add_config_flags(parser)
    return parser


def _by_name(layer: Layer, keys: dict[str, dataclasses.Field]) -> dict[str, Any]:
    """The layer's values under the names of the fields; InputError for two names of one field that differ."""
    values: dict[str, Any] = {}
    for key, value in layer.values.items():
        if key not in keys:
            continue
        name = keys[key].name
        if name in values and values[name] != value:
            raise InputError(
                f"{key!r} and another name of {name!r} are both given in {layer.origin} with different values"
            )
        values[name] = value
    return values


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"config file {str(path)!r} does not exist")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"config file {str(path)!r} cannot be read ({error}); save it as UTF-8 text") from error
    given = parse_yaml(text, f"config file {str(path)!r}")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError(f"config file {str(path)!r} must be a mapping of keys to values, not a {type(given).__name__}")
    return given


def _checked(value: Any, expected: Any, field: dataclasses.Field) -> Any:
    """The value, as a number of the wanted kind where that is safe; InputError with the YAML trap named otherwise."""
    name, meta = field.name, field.metadata
    if isinstance(value, str) and value in meta["words"]:
        return value
    fitted = _fitted(value, expected)
    if fitted is _MISFIT:
        raise InputError(
            f"{name}: {_yaml(value)} is a {_kind(value)}, but {_type_name(expected)}"
            f"{''.join(f' or {word}' for word in meta['words'])} is wanted{_trap(value)}"
        )
    if fitted is None:
        return None
    if meta["choices"] is not None and fitted not in meta["choices"]:
        raise InputError(f"{name}: {_yaml(fitted)} is not one of {', '.join(map(_yaml, meta['choices']))}")
    if isinstance(fitted, float) and not math.isfinite(fitted):
        raise InputError(f"{name}: {_yaml(fitted)} is not a finite number, as is wanted")
    for bound, wrong, word in (
        (meta["low"], lambda v, b: v < b, "at least"),
        (meta["high"], lambda v, b: v > b, "at most"),
    ):
        if bound is not None and isinstance(fitted, int | float) and wrong(fitted, bound):
            raise InputError(f"{name}: {_yaml(fitted)} is out of range; it must be {word} {bound}")
    return fitted


_MISFIT = object()


def _fitted(value: Any, expected: Any) -> Any:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (typing.Union, types.UnionType):
        fits = [_fitted(value, part) for part in arguments]
        return next((fit for fit in fits if fit is not _MISFIT), _MISFIT)
    if origin is list:
        if not isinstance(value, list):
            return _MISFIT
        fits = [_fitted(item, arguments[0]) for item in value]
        return _MISFIT if any(fit is _MISFIT for fit in fits) else fits
    if expected is Any:
        return value
    if expected is type(None):
        return None if value is None else _MISFIT
    if expected is bool or isinstance(value, bool):
        return value if expected is bool and isinstance(value, bool) else _MISFIT
    if expected is float:
        return float(value) if isinstance(value, int | float) else _MISFIT
    return value if isinstance(value, typing.get_origin(expected) or expected) else _MISFIT


def _trap(value: Any) -> str:
    """YAML 1.1 reads 1e-4 as text and a bare no, yes, on, off as a truth value; say so where that happened."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return ""
        shortest = repr(number)  # like 1e-05, which YAML takes for a number only with a point in it
        form = shortest if "." in shortest else shortest.replace("e", ".0e")
        return f" (YAML reads {value} as text; write {form})" if math.isfinite(number) else ""
    if isinstance(value, bool):
        return " (YAML reads a bare no, yes, on and off as a truth value; put quotes around a word)"
    return ""


def _kind(value: Any) -> str:
    return {
        str: "text",
        bool: "truth value",
        int: "whole number",
        float: "number",
        list: "list",
        dict: "mapping",
        type(None): "null",
    }.get(type(value), type(value).__name__)


def _type_name(expected: Any) -> str:
    arguments = typing.get_args(expected)
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in arguments)
    if typing.get_origin(expected) is list:
        return f"list of {_type_name(arguments[0])}"
    return {
        str: "text",
        bool: "true or false",
        int: "whole number",
        float: "number",
        type(None): "null",
        list: "list",
        dict: "mapping",
    }.get(expected, getattr(expected, "__name__", str(expected)))


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
