"""The settings of a sparsification whose result is quantized afterwards."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from impart.bit_plan import BITS, PAPER_PLAN, checked_plan
from impart.config import option
from impart.errors import InputError
from sparsify.allocation import kept_rank, preprune_ratio
from sparsify.allocation_quant import check_quantized
from sparsify.costs import Accounting
from sparsify.methods_quant import dare_keep_ratio, deltacome_rank
from sparsify.settings import Config

log = logging.getLogger(__name__)

KEYS_OF_METHOD = {"impart": ("preprune_ratio", "C", "mask", "bit_plan"), "deltacome": ("bit_plan",), "dare": ("bits",)}
COMMON_KEYS = ("compression_ratio_qt", "accounting", "grid")
PAPER_KEYS = {"grid": ("groupsize",), "accounting": ("count_3bit_as_4",)}  # read only where the key says paper


@dataclass(frozen=True)
class QuantConfig(Config):
    """What to sparsify before it is quantized: the keys of sparsify.py and how the size is counted."""

    method: str = option("impart", help="how to sparsify", choices=("impart", "deltacome", "dare"))
    compression_ratio_qt: float | None = option(
        None, help="CR_qt: 16-bit size of dW over its quantized size; default: compression_ratio", low=1.0
    )
    bit_plan: list[list[int | str]] = option(
        [list(part) for part in PAPER_PLAN],
        help="[bits, number of triplets] in the order of the singular values; the last number may be `rest`",
    )
    bits: int = option(2, help="of DARE's entries", choices=BITS)
    grid: str = option(
        "compact",
        choices=("paper", "compact"),
        help="how it will be quantized: paper: min-max grids "
        "for groups of columns; compact: one fitted grid per singular vector, about as accurate in 55 to "
        "70 % of the bytes (benchmarks/README.md)",
    )
    groupsize: int = option(
        128, help="columns that share a min-max grid (grid: paper); -1: all", unit="columns", low=-1
    )
    accounting: str | None = option(
        None,
        choices=("paper", "bytes"),
        help="paper: codes alone; bytes: every stored byte "
        "of the linear layers; default: bytes with grid: compact, else paper",
    )
    count_3bit_as_4: bool = option(False, help="count 3-bit codes as 4 bits, as the release does (accounting: paper)")


def resolved_quant(config: QuantConfig) -> QuantConfig:
    """The settings with defaults filled in; InputError for what contradicts or lacks."""
    if config.C == "only_lowrank":
        raise InputError("C: only_lowrank is a method of sparsify.py; its quantized form is method: deltacome here")
    if config.compression_ratio_qt is None:
        if config.compression_ratio is None:
            raise InputError("compression_ratio_qt is missing: 16-bit size of dW over its quantized size, e.g. 32")
        log.info(
            "compression_ratio_qt is not given: compression_ratio=%g is taken for the quantized ratio",
            config.compression_ratio,
        )
        config = replace(config, compression_ratio_qt=config.compression_ratio)
    if config.method == "impart":
        missing = [key for key in ("preprune_ratio", "C") if getattr(config, key) is None]
        if missing:
            raise InputError(
                f"{missing[0]} is missing, and method impart needs it; the paper takes preprune_ratio from "
                "0.6, 0.7, 0.8 and C from 0.5, 1"
            )
        if config.preprune_ratio >= 1:
            raise InputError(f"preprune_ratio={config.preprune_ratio:g} drops every singular vector; take less than 1")
    if config.allocation != "importance" or not config.rescale:
        raise InputError("allocation and rescale are ablations of sparsify.py; quantization takes the method as it is")
    if config.groupsize == 0:
        raise InputError("groupsize=0 means nothing; take -1 for one group of all columns")
    accounting = config.accounting or ("bytes" if config.grid == "compact" else "paper")
    if config.count_3bit_as_4 and accounting != "paper":
        raise InputError("count_3bit_as_4 is the release's way of counting values: it needs accounting: paper")
    if config.svd_dir is None and (config.base_model is None or config.ftm_dir is None):
        raise InputError("nothing to sparsify: give svd_dir, or base_model and ftm_dir")
    return replace(config, accounting=accounting, bit_plan=checked_plan(config.bit_plan))


def accounting_of(config: QuantConfig) -> Accounting:
    return Accounting(
        config.bit_plan,
        config.accounting,
        config.grid,
        config.groupsize,
        config.count_3bit_as_4,
        masked=config.method != "deltacome",
    )


def check_quantized_budgets(config: QuantConfig, shapes: Mapping[str, tuple[int, int]]) -> None:
    """InputError naming the first matrix for which the ratio cannot be met."""
    accounting, cr = accounting_of(config), config.compression_ratio_qt
    for name, (m, n) in shapes.items():
        if config.method == "impart":
            check_quantized(name, m, n, cr, config.preprune_ratio, accounting.cost(name, m, n, cr))
            accounting.bits(kept_rank(min(m, n), preprune_ratio(m, n, config.preprune_ratio)), name)
        elif config.method == "deltacome":
            deltacome_rank(name, m, n, cr, accounting)
        else:
            dare_keep_ratio(name, m, n, cr, config.bits, accounting)


def head_quant(config: QuantConfig) -> dict:
    """What delta.json says of the settings: those that the method reads, and nothing of paths."""
    keys = COMMON_KEYS + KEYS_OF_METHOD[config.method]
    keys += tuple(name for key, names in PAPER_KEYS.items() if getattr(config, key) == "paper" for name in names)
    return {
        "kind": "sparse",
        "method": config.method,
        "settings": {key: getattr(config, key) for key in keys},
        "seed": config.seed,
    }
