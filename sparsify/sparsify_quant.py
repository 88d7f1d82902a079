"""Sparsifies a delta so that it meets a ratio once it is quantized: ImPart by Algorithm 3, or Delta-CoMe's or DARE's part.

Reads what sparsify.py reads, with the same YAML keys, and compression_ratio_qt (without it, compression_ratio is taken for
the quantized ratio). Writes a sparse delta artifact in 16 bit; quantize/sparse_llama.py quantizes it.

    python sparsify/sparsify_quant.py --config sparsify/config_example.yaml
    python sparsify/sparsify_quant.py --config configs/tiny/code.yaml compression_ratio_qt=32 save_dir=runs/code_32.sparse
    python sparsify/sparsify_quant.py --config sparsify/config_example.yaml method=deltacome save_dir=runs/deltacome.sparse
"""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as `python sparsify/sparsify_quant.py`: import from the repository root, not from sparsify/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart import processes
from impart.artifact import Delta
from impart.checkpoint import refuse_existing, weight_type
from impart.compress import compress
from impart.config import as_dict, config_parser, load
from impart.device import use_device
from impart.encoded import Encoded
from impart.encodings import empty
from impart.errors import run
from impart.files import write_atomically
from impart.report import Report, start_logging, table
from impart.sources import Source, open_source
from sparsify.methods import impart_rank
from sparsify.methods_quant import dare_quantized, deltacome, deltacome_rank, impart_to_size
from sparsify.settings_quant import QuantConfig, accounting_of, check_quantized_budgets, head_quant, resolved_quant


def main(arguments: Sequence[str]) -> None:
    flags = config_parser(QuantConfig, __doc__).parse_intermixed_args(arguments)
    start_logging()
    config = resolved_quant(load(QuantConfig, flags.config, flags.overrides))
    refuse_existing(Path(config.save_dir), flags.overwrite)
    device, report = use_device(flags.device, flags.threads), Report(as_dict(config))
    source = open_source(config, device, lambda shapes: check_quantized_budgets(config, shapes))
    source.require(lambda name: needed_rank(config, name, *source.shape(name)))
    delta = compress(
        source,
        encoder(config, source),
        config.save_dir,
        head_quant(config),
        overwrite=flags.overwrite,
        needed_bytes=expected_bytes(config, source),
        report=report,
        what=config.method,
    )
    if delta is not None:
        print(summary(delta))
        if config.log_dir:
            write_table(delta, Path(config.log_dir) / f"{delta.path.name}.csv")
    processes.leave()


def needed_rank(config: QuantConfig, name: str, m: int, n: int) -> int:
    """Number of leading singular triplets of an (m, n) matrix that the method reads."""
    if config.method == "dare":
        return min(m, n)
    return (
        impart_rank(m, n, config.preprune_ratio)
        if config.method == "impart"
        else deltacome_rank(name, m, n, config.compression_ratio_qt, accounting_of(config))
    )


def encoder(config: QuantConfig, source: Source) -> Callable[[str], Encoded]:
    """The method of the settings as a function from a matrix's name to what is stored of it."""
    cr, accounting = config.compression_ratio_qt, accounting_of(config)

    def encode(name: str) -> Encoded:
        m, n = source.shape(name)
        if config.method == "dare":
            return dare_quantized(
                source.dense(name), name=name, cr=cr, bits=config.bits, seed=config.seed, accounting=accounting
            )
        triplets = source.triplets(name, needed_rank(config, name, m, n))
        if triplets is None:
            return empty((m, n))
        if config.method == "deltacome":
            return deltacome(*triplets, name=name, cr=cr, accounting=accounting)
        return impart_to_size(
            *triplets,
            name=name,
            cr=cr,
            beta=config.preprune_ratio,
            C=config.C,
            seed=config.seed,
            mask=config.mask,
            accounting=accounting,
        )

    return encode


def expected_bytes(config: QuantConfig, source: Source) -> int:
    """Upper estimate of the artifact's size without extras: 16 bit for every code of at least 2."""
    entries = sum(m * n for m, n in map(source.shape, source.matrices))
    return int(2.2 * 8 * entries / config.compression_ratio_qt)


def summary(delta: Delta) -> str:
    """The ratio asked for against what the codes alone, and all bytes of the linear layers, will take once quantized."""
    settings, entries = delta.manifest["settings"], delta.manifest["matrices"].values()
    dense = sum(2 * entry["shape"][0] * entry["shape"][1] for entry in entries)
    codes, stored = (sum(entry.get(key, 0) for entry in entries) for key in ("quantized_codes", "quantized_bytes"))
    rows = [
        ("codes of the linear layers", f"{dense:,}", f"{codes:,}", f"{dense / max(codes, 1):.2f}"),
        ("bytes of the linear layers", f"{dense:,}", f"{stored:,}", f"{dense / max(stored, 1):.2f}"),
    ]
    return (
        f"{delta.path}: {delta.manifest['method']} for a quantized ratio of {settings['compression_ratio_qt']:g} "
        f"(accounting: {settings['accounting']}, grid: {settings['grid']}), seed {delta.manifest['seed']}\n"
        + table(rows, ("once quantized", "16 bit", "bytes", "ratio"))
    )


def write_table(delta: Delta, file: Path) -> None:
    """One line per matrix: shape, ranks, kept entries, and ratios once it is quantized."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("name", "type", "m", "n", "rank", "kept_u", "kept_v", "code_ratio", "byte_ratio"))
    for name, entry in delta.manifest["matrices"].items():
        (m, n), kept = entry["shape"], entry["kept"]
        ratios = [
            f"{2 * m * n / entry[key]:.4f}" if entry.get(key) else "" for key in ("quantized_codes", "quantized_bytes")
        ]
        writer.writerow(
            (name, weight_type(name), m, n, entry.get("rank", ""), kept[0], kept[1] if len(kept) == 2 else "", *ratios)
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.getvalue().encode())


if __name__ == "__main__":
    run(main)
