"""The settings of a sparsification, under the names of the authors' YAML files where they have one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from impart.config import option
from impart.errors import InputError
from sparsify.allocation import check_feasible

KEYS_OF_METHOD = {
    "impart": ("compression_ratio", "accounting", "preprune_ratio", "C", "allocation", "mask", "rescale"),
    "dare": ("compression_ratio", "rescale"),
    "lowrank": ("compression_ratio",),
}


@dataclass(frozen=True)
class Config:
    """What to sparsify, how, and where to."""

    save_dir: str = option(help="folder of the sparse delta that is written")
    ftm_dir: str | None = option(None, help="fine-tuned model: folder or hub id", aliases=("finetuned_model",))
    base_model: str | None = option(
        None, help="base model: folder or hub id; not needed with svd_dir", aliases=("ptm_dir",)
    )
    svd_dir: str | None = option(None, help="saved SVD delta; without it the SVD is computed from the two models")
    log_dir: str | None = option(None, help="folder of the per-matrix table (CSV)")
    method: str = option("impart", help="how to sparsify", choices=("impart", "dare", "lowrank"))
    compression_ratio: float | None = option(
        None, help="CR: number of entries of dW over number of kept values", low=1.0
    )
    compression_ratio_qt: float | None = option(
        None, help="CR_qt, with quantization: read by sparsify_quant.py only", low=1.0
    )
    preprune_ratio: float | None = option(
        None,
        help="beta: share of singular vectors that is dropped first, for a square matrix; 0 switches it off",
        aliases=("beta",),
        low=0.0,
    )
    C: float | None = option(
        None,
        help="exponent of the importance s_k / s_1; only_lowrank means method: lowrank",
        words=("only_lowrank",),
        low=0.0,
    )
    allocation: str = option(
        "importance",
        help="sparsity of each singular vector by its value (Eq. 7), or one for all",
        choices=("importance", "uniform"),
    )
    mask: str = option(
        "bernoulli",
        help="independent draws per entry, or exact counts per column",
        choices=("bernoulli", "exact_count"),
    )
    rescale: bool = option(True, help="multiply kept entries by 1 / (1 - p)")
    accounting: str | None = option(
        "paper",
        choices=("paper", "bytes"),
        help="of ImPart: paper: the kept values alone are 1 / CR; bytes: so is every stored byte of the linear layers",
    )
    seed: int = option(0, help="decides every mask", low=0)
    weight_types: list[str] | None = option(
        None, help="types to compress, like self_attn.q_proj; default: all linear weights under self_attn and mlp"
    )
    layer_num: int | None = option(None, help="number of layers that weight_name counts through", low=1)
    weight_name: str | None = option(None, help="pattern of the names, like model.layers.{layer_num}.{weight_type}")
    save_model: bool = option(False, help="also write base + sparse delta as a dense checkpoint")
    model_dir: str | None = option(None, help="folder of that checkpoint (default: save_dir with _model added)")


def resolved(config: Config) -> Config:
    """The settings with the authors' `C: only_lowrank` spelled out; InputError for what contradicts or lacks."""
    if config.C == "only_lowrank":
        config = replace(config, method="lowrank", C=None, preprune_ratio=None)
    if config.compression_ratio is None:
        raise InputError("compression_ratio is missing: entries of dW over kept values, e.g. 32")
    if config.method == "impart":
        missing = [key for key in ("preprune_ratio", "C") if getattr(config, key) is None]
        if missing:
            raise InputError(
                f"{missing[0]} is missing, and method impart needs it; the paper takes preprune_ratio from "
                "0.6, 0.7, 0.8 and C from 0.5, 1 (C: only_lowrank is the LowRank baseline)"
            )
        if config.preprune_ratio >= 1:
            raise InputError(f"preprune_ratio={config.preprune_ratio:g} drops every singular vector; take less than 1")
    if config.accounting == "bytes" and (config.method != "impart" or config.allocation != "importance"):
        raise InputError("accounting: bytes is a choice of method: impart with allocation: importance")
    if config.svd_dir is None and (config.base_model is None or config.ftm_dir is None):
        raise InputError("nothing to sparsify: give svd_dir, or base_model and ftm_dir")
    return config


def head(config: Config) -> dict:
    """What delta.json says of the settings: those that the method reads, and nothing of paths."""
    keys = KEYS_OF_METHOD[config.method]
    return {
        "kind": "sparse",
        "method": config.method,
        "settings": {key: getattr(config, key) for key in keys},
        "seed": config.seed,
    }


def check_budgets(config: Config, shapes: Mapping[str, tuple[int, int]]) -> None:
    """InputError naming the first matrix whose pre-pruning drops more than the compression ratio allows."""
    if config.method == "impart":
        for name, (m, n) in shapes.items():
            check_feasible(name, m, n, config.compression_ratio, config.preprune_ratio)
