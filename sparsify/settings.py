"""The settings of a sparsification: what to compress and where to, and a method with its keys."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from impart.config import Layer, check_keys, fill, keys_of, option, read_layers
from impart.errors import InputError
from impart.method import Method, described_methods
from impart.pair import Pair, RowNotes, pairs_first, unread_keys
from impart.sources import Origin
from impart.units import units
from sparsify.faces import PlainMethod, QuantizedMethod, SparseMethod

log = logging.getLogger(__name__)

FACES: dict[str, type[PlainMethod] | type[QuantizedMethod]] = {
    "sparse": PlainMethod,
    "quantized": QuantizedMethod,
}  # sparsify.py, sparsify_quant.py
DEFAULT_METHOD = "impart"


@dataclass(frozen=True, kw_only=True)
class RunConfig(Origin):
    """What to sparsify, by which method, and where to."""

    save_dir: str = option(help="folder of the sparse delta that is written")
    log_dir: str | None = option(None, help="folder of the per-matrix table (CSV)")
    method: str = option(DEFAULT_METHOD, help="how to sparsify; each method has its own keys, below")
    seed: int = option(0, help="decides every mask", low=0)
    save_model: bool = option(False, help="also write base + sparse delta as a dense checkpoint")
    model_dir: str | None = option(None, help="folder of that checkpoint (default: save_dir with _model added)")


@dataclass(frozen=True)
class Settings:
    """A run's settings, checked."""

    config: RunConfig
    method: Method
    row: RowNotes

    def check_information(self) -> None:
        """InputError where a row lacks the file that says what errors cost."""
        if self.row.needs_information and getattr(self.method, "information", None) is None:
            raise InputError("this row needs information=FILE, which quantize/information.py writes")


@overload
def methods(face: Literal["sparse"]) -> dict[str, type[PlainMethod]]: ...


@overload
def methods(face: str) -> dict[str, type[Method]]: ...


def methods(face: str) -> Any:
    """The methods of a face, `sparse` or `quantized`, by name."""
    return units("sparsify.methods", FACES[face])


def load_settings(
    face: str, paths: str | Path | Sequence[str | Path] | None, overrides: Sequence[str] = ()
) -> Settings:
    """The settings from YAML files and overrides, later ones winning; InputError for wrong, missing or unread keys."""
    layers = _spelled_out(face, pairs_first(read_layers(paths, overrides)))
    known = methods(face)
    # A file may serve both scripts, as the authors' does, and say what else there is to say of a pair or a row.
    check_keys(layers, [RunConfig, *known.values()], also=[Pair, RowNotes, SparseMethod, QuantizedMethod])
    name = next((layer.values["method"] for layer in reversed(layers) if "method" in layer.values), DEFAULT_METHOD)
    if str(name) not in known:
        raise InputError(f"method: {name} is not one of {', '.join(known)}{_where_else(face, str(name))}")
    _say_unread(layers, known, str(name))
    config = fill(RunConfig, layers)
    method = fill(known[str(name)], layers, needed_by=f"method {name}").resolved()
    if config.svd_dir is None and (config.base_model is None or config.ftm_dir is None):
        raise InputError("nothing to sparsify: give svd_dir, or base_model and ftm_dir")
    return Settings(config, method, fill(RowNotes, layers))


def described(face: str) -> tuple[str, ...]:
    """The keys of the face's methods, for --help."""
    return tuple(described_methods(methods(face)))


def _spelled_out(face: str, layers: Sequence[Layer]) -> list[Layer]:
    """The authors' two shorthands: `C: only_lowrank`, and one ratio for both scripts."""
    ratio = FACES[face].ratio_key
    given = {key: value for layer in layers for key, value in layer.values.items()}
    if given.get("C") == "only_lowrank":
        if "lowrank" not in methods(face):
            raise InputError("C: only_lowrank is a method of sparsify.py; its quantized form is method: deltacome here")
        layers = [_without(layer, "C", "preprune_ratio") for layer in layers]
        return [*layers, Layer("C: only_lowrank", {"method": "lowrank"}, is_file=True)]
    if ratio not in given and ratio != "compression_ratio" and given.get("compression_ratio") is not None:
        log.info(
            "compression_ratio_qt is not given: compression_ratio=%s is taken for the quantized ratio",
            given["compression_ratio"],
        )
        layers = [_without(layer, "compression_ratio") for layer in layers]
        return [*layers, Layer("compression_ratio", {ratio: given["compression_ratio"]}, is_file=True)]
    return list(layers)


def _say_unread(layers: Sequence[Layer], known: dict[str, type[Method]], name: str) -> None:
    """A note for every key of another method that was given together with this method or after it.

    It is no error, so that a loop over methods may carry the keys of all of them; those of a pair's file are not said.
    """
    for key in unread_keys(layers, {*keys_of(known[name]), *keys_of(RunConfig)}):
        owners = [other for other, cls in known.items() if key in keys_of(cls)]
        if owners:
            log.info("note: %s is a key of method %s; method %s does not read it", key, " and ".join(owners), name)


def _where_else(face: str, name: str) -> str:
    scripts = {"sparse": "sparsify.py", "quantized": "sparsify_quant.py"}
    hints = [f"; {scripts[other]} has it" for other in FACES if other != face and name in methods(other)]
    if face == "quantized":
        hints.append("; quantize/sparse_llama.py has those that need no sparse delta")
    return "".join(hints)


def _without(layer: Layer, *keys: str) -> Layer:
    values: dict[str, Any] = {key: value for key, value in layer.values.items() if key not in keys}
    return Layer(layer.origin, values, layer.is_file)
