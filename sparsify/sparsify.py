"""Sparsifies the delta between a fine-tuned model and its base: ImPart, DARE or LowRank, and ImPart's ablations.

Reads an SVD delta (svd_dir, made by delta.py --svd), or the two checkpoints themselves (base_model and ftm_dir), where
SVD, allocation and masking are one step per matrix. Writes a sparse delta artifact to save_dir, its per-matrix ratios
as CSV to log_dir and, with save_model: true, the dense checkpoint as well.

    python sparsify/sparsify.py --config sparsify/config_example.yaml
    python sparsify/sparsify.py --config configs/tiny/code.yaml compression_ratio=16 seed=1 save_dir=runs/code_16
    accelerate launch sparsify/sparsify.py --config sparsify/config_example.yaml
"""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as `python sparsify/sparsify.py`: import from the repository root, not from sparsify/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart import processes
from impart.artifact import Delta
from impart.checkpoint import open_checkpoint, refuse_existing, weight_type
from impart.compress import compress
from impart.config import as_dict, config_parser, load
from impart.device import use_device
from impart.encodings import Encoded, empty
from impart.errors import run
from impart.files import write_atomically
from impart.reconstruct import write_model
from impart.report import Report, start_logging, table
from impart.sources import Source, open_source
from sparsify.allocation import lowrank_rank, preprune_ratio, uv_sparsity
from sparsify.costs import Accounting
from sparsify.methods import dare, impart, impart_rank, lowrank
from sparsify.methods_quant import impart_to_size
from sparsify.settings import Config, check_budgets, head, resolved


def main(arguments: Sequence[str]) -> None:
    flags = config_parser(Config, __doc__).parse_intermixed_args(arguments)
    config = resolved(load(Config, flags.config, flags.overrides))
    start_logging()
    refuse_existing(Path(config.save_dir), flags.overwrite)
    if config.save_model:
        refuse_existing(model_dir(config), flags.overwrite)
    if config.log_dir:
        refuse_existing(table_file(config), overwrite=True)  # a log may be replaced, but its place has to be writable
    device, report = use_device(flags.device, flags.threads), Report(as_dict(config))
    source = open_source(config, device, lambda shapes: check_budgets(config, shapes))
    source.require(lambda name: needed_rank(config, *source.shape(name)))
    delta = compress(
        source,
        encoder(config, source),
        config.save_dir,
        head(config),
        overwrite=flags.overwrite,
        needed_bytes=expected_bytes(config, source),
        report=report,
        what=config.method,
    )
    if delta is not None:
        print(summary(delta))
        if config.log_dir:
            write_table(delta, table_file(config))
        if config.save_model:
            base = open_checkpoint(config.base_model or delta.manifest["base"]["source"])
            write_model(delta, base, model_dir(config), device=device, overwrite=flags.overwrite)
            print(f"dense checkpoint: {model_dir(config)}")
    processes.leave()


def needed_rank(config: Config, m: int, n: int) -> int:
    """Number of leading singular triplets of an (m, n) matrix that the method reads."""
    if config.method == "dare":
        return min(m, n)
    return (
        impart_rank(m, n, config.preprune_ratio)
        if config.method == "impart"
        else min(m, n, lowrank_rank(m, n, config.compression_ratio))
    )


def encoder(config: Config, source: Source) -> Callable[[str], Encoded]:
    """The method of the settings as a function from a matrix's name to what is stored of it."""
    cr, seed = config.compression_ratio, config.seed

    def encode(name: str) -> Encoded:
        m, n = source.shape(name)
        if config.method == "dare":
            return dare(source.dense(name), name=name, cr=cr, seed=seed, rescale=config.rescale)
        beta, triplets = config.preprune_ratio, source.triplets(name, needed_rank(config, m, n))
        if triplets is None:
            return empty((m, n))
        if config.method == "lowrank":
            return lowrank(*triplets, cr=cr)
        if config.accounting == "bytes":
            return impart_to_size(
                *triplets,
                name=name,
                cr=cr,
                beta=beta,
                C=config.C,
                seed=seed,
                mask=config.mask,
                rescale=config.rescale,
                accounting=Accounting(plan=None),
            )
        return impart(
            *triplets,
            name=name,
            cr=cr,
            beta=beta,
            C=config.C,
            seed=seed,
            allocation=config.allocation,
            mask=config.mask,
            rescale=config.rescale,
        )

    return encode


def expected_bytes(config: Config, source: Source) -> int:
    """Upper estimate of the artifact's size without extras: the kept values, and a tenth for all that goes with them."""
    entries = sum(m * n for m, n in map(source.shape, source.matrices))
    return int(2.2 * entries / config.compression_ratio)


def summary(delta: Delta) -> str:
    """Nominal ratio against what was written: by values, by bytes of the linear layers, by bytes of the checkpoint."""
    sizes, nominal = delta.sizes(), delta.manifest["settings"]["compression_ratio"]
    kept = sum(sum(entry["kept"]) for entry in delta.manifest["matrices"].values())
    rows = [
        (
            "values of the linear layers",
            f"{sizes.linear_dense // 2:,}",
            f"{kept:,}",
            f"{sizes.linear_dense / 2 / max(kept, 1):.2f}",
        ),
        ("bytes of the linear layers", f"{sizes.linear_dense:,}", f"{sizes.linear:,}", f"{sizes.linear_ratio:.2f}"),
        ("bytes of the checkpoint", f"{sizes.checkpoint:,}", f"{sizes.total:,}", f"{sizes.checkpoint_ratio:.2f}"),
    ]
    return (
        f"{delta.path}: {delta.manifest['method']} at compression ratio {nominal:g}, seed {delta.manifest['seed']}\n"
        + table(rows, ("", "before", "after", "ratio"))
    )


def write_table(delta: Delta, file: Path) -> None:
    """One line per matrix: shape, ranks, sparsity asked for and measured, and true ratios."""
    settings, text = delta.manifest["settings"], io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("name", "type", "m", "n", "alpha", "b", "rank", "kept_u", "kept_v", "sparsity", "value_ratio", "byte_ratio")
    )
    for name, entry in delta.manifest["matrices"].items():
        (m, n), kept = entry["shape"], sum(entry["kept"])
        capacity = (m + n) * min(m, n) if len(entry["kept"]) == 2 else m * n
        beta = settings.get("preprune_ratio")
        writer.writerow(
            (
                name,
                weight_type(name),
                m,
                n,
                f"{uv_sparsity(m, n, settings['compression_ratio']):.6f}",
                "" if beta is None else f"{preprune_ratio(m, n, beta):.6f}",
                entry.get("rank", ""),
                entry["kept"][0],
                entry["kept"][1] if len(entry["kept"]) == 2 else "",
                f"{1 - kept / capacity:.6f}",
                f"{m * n / kept:.4f}" if kept else "",
                f"{2 * m * n / entry['bytes']:.4f}" if kept else "",
            )
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.getvalue().encode())


def table_file(config: Config) -> Path:
    return Path(config.log_dir).expanduser() / f"{Path(config.save_dir).name}.csv"


def model_dir(config: Config) -> Path:
    return Path(config.model_dir or f"{config.save_dir.rstrip('/')}_model")


if __name__ == "__main__":
    run(main)
