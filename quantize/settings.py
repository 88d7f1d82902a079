"""The settings of a quantization, under the names of the authors' YAML files where they have one."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from impart.bit_plan import BITS, PAPER_PLAN, plan_of_columns
from impart.config import Layer, check_keys, fill, keys_of, option, read_layers
from impart.errors import InputError
from impart.method import Method
from impart.pair import Pair, RowNotes, pairs_first, unread_keys
from quantize.matrix import Rule
from quantize.one_step import OneStepMethod, one_step_methods
from sparsify.faces import GRIDS
from sparsify.settings import methods

log = logging.getLogger(__name__)
OF_SPARSE_GPTQ = ("grid", "bits", "wbits", "true_sequential", "act_order", "groupsize", "damping")


def _columns(kind: str, bits: int, default: str):
    return option(None, help=f"triplets of {kind} matrices in {bits} bit{default}", low=0)


@dataclass(frozen=True)
class Config:
    """How to quantize a sparse delta, and on what to calibrate."""

    baseModel: str | None = option(
        None, help="base model: folder or hub id; default: the one that the delta names", aliases=("base_model",)
    )
    grid: str | None = option(
        None,
        choices=GRIDS,
        help="paper: min-max grids for groups of columns; compact: one "
        "fitted grid per singular vector, about as accurate in 55 to 70 % of the bytes "
        "(benchmarks/README.md); default: what the delta was allocated for, else paper",
    )
    attn_fp16_col: int | None = _columns("self_attn", 16, "; must be 0")
    attn_int8_col: int | None = _columns("self_attn", 8, "; default: the delta's bit plan, else 2")
    attn_int4_col: int | None = _columns("self_attn", 4, "; default: the delta's, else 0")
    attn_int3_col: int | None = _columns("self_attn", 3, "; default: the delta's, else 32")
    attn_int2_col: int | None = _columns("self_attn", 2, "; default: the delta's, else the rest")
    mlp_fp16_col: int | None = _columns("mlp", 16, "; must be 0")
    mlp_int8_col: int | None = _columns("mlp", 8, "; as for self_attn")
    mlp_int4_col: int | None = _columns("mlp", 4, "; as for self_attn")
    mlp_int3_col: int | None = _columns("mlp", 3, "; as for self_attn")
    mlp_int2_col: int | None = _columns("mlp", 2, "; as for self_attn")
    bits: list[int] | int | None = option(
        None,
        help="the bits that the keys above use, checked against them; one number: that of DARE's entries, as wbits",
    )
    wbits: int | None = option(
        None,
        help="bits of a DARE delta's entries; default: those that it was made for; no effect on singular vectors",
        choices=BITS,
    )
    true_sequential: bool = option(True, help="every matrix sees the outputs of those already quantized in its layer")
    act_order: bool = option(True, help="columns by descending activation")
    groupsize: int = option(
        128, help="columns that share a min-max grid (grid: paper); -1: all", unit="columns", low=-1
    )
    damping: float = option(
        0.01, help="added to the Hessian's diagonal", unit="of its mean", low=0.0, aliases=("percdamp",)
    )
    nsamples: int = option(128, help="calibration sequences", low=1)
    seqlen: int = option(2048, help="length of a calibration sequence", unit="tokens", low=1)
    batch: int = option(1, help="sequences that pass a layer together", low=1)
    text_field: str = option("text", help="field of a calibration .jsonl or .json that holds the text")
    seed: int = option(0, help="decides the calibration sequences, and the mask of a method below", low=0)
    method: str | None = option(
        None,
        help="a method that reads the two models and no sparse delta, below; or that of the sparse delta, which is "
        "checked; default: the delta's",
    )


def sparse_methods() -> list[type[Method]]:
    """The methods of sparsify.py and of sparsify_quant.py: a sparse delta is of one of them."""
    return [cls for face in ("sparse", "quantized") for cls in methods(face).values()]


def load_config(paths: Sequence[str] | None, overrides: Sequence[str]) -> tuple[Config, OneStepMethod | None]:
    """The settings, and the method where one is named that reads the two models; InputError for a key nobody reads.

    Files may be those of pairs and rows: what they say of a sparsification is left to sparsify_quant.py.
    """
    layers = pairs_first(read_layers(paths, overrides))
    known, sparse = one_step_methods(), sparse_methods()
    check_keys(layers, [Config, *known.values()], also=[Pair, RowNotes, *sparse])
    config = fill(Config, layers)
    if config.method in known:
        _say_unread(layers, known, config.method)
        return config, fill(known[config.method], layers, needed_by=f"method {config.method}").resolved()
    names = sorted({cls.name for cls in sparse})
    if config.method is not None and config.method not in names:
        raise InputError(
            f"method: {config.method} is neither one of {', '.join(known)}, which read the two models, nor one of "
            f"{', '.join(names)}, of which a sparse delta may be"
        )
    # A file may hold these for another script; on the command line nobody else reads them.
    others = {*keys_of(Pair), *(key for cls in sparse for key in keys_of(cls))}
    for layer in layers:
        for key in layer.values:
            owners = [name for name, cls in known.items() if key in keys_of(cls)]
            if owners and key not in keys_of(Config) and not (layer.is_file and key in others):
                raise InputError(
                    f"{key} in {layer.origin} is a key of method {' and '.join(owners)}; a sparse delta has been given "
                    "its ratio by sparsify_quant.py: leave the key out, or name the method"
                )
    return config, None


def _say_unread(layers: Sequence[Layer], known: Mapping[str, type[OneStepMethod]], method: str) -> None:
    """A note for every key that was given together with this method, or after it, although it does not read it."""
    read = {*keys_of(known[method]), *(key for key in keys_of(Config) if not _of_sparse_delta(key))}
    for key in unread_keys(layers, read):
        log.warning("note: method %s does not read %s", method, key)


def _of_sparse_delta(key: str) -> bool:
    """Whether a key of Config is about sparse GPTQ, and not about the models and the text."""
    return keys_of(Config)[key].name in OF_SPARSE_GPTQ or key.endswith("_col")


def resolved_rule(config: Config, manifest: Mapping) -> Rule:
    """How to quantize the delta of this manifest; InputError for settings other than those it was allocated for."""
    allocated = manifest["settings"]
    grid = config.grid or allocated.get("grid") or "paper"
    if allocated.get("accounting") == "bytes" and grid != allocated.get("grid", grid):
        raise InputError(
            f"grid: {grid} does not fit this delta: its bytes were counted for grid: {allocated['grid']}; "
            f"run sparsify_quant.py with grid={grid} or leave grid out here"
        )
    if config.groupsize == 0:
        raise InputError("groupsize=0 means nothing; take -1 for one group of all columns")
    plans = {kind: _plan(config, kind, allocated.get("bit_plan")) for kind in ("attn", "mlp")}
    _check_bits(config, plans)
    entry_bits = config.wbits or (config.bits if isinstance(config.bits, int) else None) or allocated.get("bits")
    if manifest["method"] == "dare":
        if entry_bits is None:
            raise InputError("wbits is missing: the bits of a DARE delta's entries (2, 3, 4 or 8)")
        if allocated.get("bits") not in (None, entry_bits):
            raise InputError(
                f"wbits={entry_bits} does not fit this delta: its entries were counted at "
                f"{allocated['bits']} bits; leave wbits out (wbits=null) or run sparsify_quant.py with "
                f"bits={entry_bits}"
            )
    return Rule(grid, plans["attn"], plans["mlp"], entry_bits or 0, config.groupsize, config.damping, config.act_order)


def _plan(config: Config, kind: str, allocated: list | None) -> list:
    given = plan_of_columns(
        {
            bits: getattr(config, f"{kind}_{name}_col")
            for bits, name in ((16, "fp16"), (8, "int8"), (4, "int4"), (3, "int3"), (2, "int2"))
        },
        kind,
    )
    if allocated is None:
        return given or [list(part) for part in PAPER_PLAN]
    if given is not None and not _agree(given, allocated):
        raise InputError(
            f"the keys {kind}_int*_col say {given}, but this delta was allocated for the bit plan {allocated}; "
            "leave them out, or run sparsify_quant.py with that bit_plan"
        )
    return allocated


def _agree(given: list, allocated: list) -> bool:
    """Whether two plans give the same bits: all entries equal, the last one in its bits alone (`rest` or a number)."""
    return given[:-1] == allocated[:-1] and given[-1][0] == allocated[-1][0]


def _check_bits(config: Config, plans: Mapping[str, list]) -> None:
    used = {bits for plan in plans.values() for bits, _ in plan}
    if isinstance(config.bits, list) and set(config.bits) != used:
        raise InputError(
            f"bits: {config.bits} does not agree with the number of triplets per bits, which use "
            f"{sorted(used, reverse=True)}; the keys are attn_int8_col ... mlp_int2_col"
        )


def head_settings(config: Config, rule: Rule, manifest: Mapping, tokens: str) -> dict:
    """What delta.json says of the settings: all that decides the bytes. `tokens`: a hash of the calibration tokens."""
    keys = ("true_sequential", "act_order", "damping", "nsamples", "seqlen")
    allocated = "bit_plan" in manifest["settings"] or manifest["method"] == "dare"
    plans = {} if allocated else {"attn_plan": rule.attn_plan, "mlp_plan": rule.mlp_plan}
    entry_bits = {"bits": rule.entry_bits} if manifest["method"] == "dare" else {}
    return {
        **manifest["settings"],
        **plans,
        **entry_bits,
        "grid": rule.grid,
        **({"groupsize": rule.groupsize} if rule.grid == "paper" else {}),
        **{key: getattr(config, key) for key in keys},
        "calibration_seed": config.seed,
        "calibration_tokens": tokens,
    }
