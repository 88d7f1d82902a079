"""What a sparsification says when it is done: ratios asked for and measured, in all and per matrix."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impart.architecture import weight_type
from impart.artifact import Delta, triplet_count
from impart.files import write_atomically
from impart.report import table
from sparsify.allocation import preprune_ratio, uv_sparsity


@dataclass(frozen=True)
class Summary:
    """How one script reports: a text for the terminal, and a line per matrix under `columns` for a CSV."""

    summary: Callable[[Delta], str]
    columns: Sequence[str]
    row: Callable[[dict, dict], Sequence[Any]]  # (a matrix's entry, the settings) -> its cells after name, type, m, n

    def write_table(self, delta: Delta, file: Path) -> None:
        """One line per matrix, with its name, type and shape first."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("name", "type", "m", "n", *self.columns))
        for name, entry in delta.manifest["matrices"].items():
            cells = self.row(entry, delta.manifest["settings"])
            writer.writerow((name, weight_type(name), *entry["shape"], *cells))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text.getvalue().encode())


def sparse_summary(delta: Delta) -> str:
    """Nominal ratio against what was written: by values, by bytes of the linear layers, by bytes of the checkpoint."""
    sizes, nominal = delta.sizes(), delta.manifest["settings"].get("compression_ratio")
    kept = sum(sum(entry["kept"]) for entry in delta.manifest["matrices"].values())
    values = sizes.linear_dense // 2
    rows = [
        ("values of the linear layers", f"{values:,}", f"{kept:,}", f"{sizes.linear_dense / 2 / max(kept, 1):.2f}"),
        ("bytes of the linear layers", f"{sizes.linear_dense:,}", f"{sizes.linear:,}", f"{sizes.linear_ratio:.2f}"),
        ("bytes of the checkpoint", f"{sizes.checkpoint:,}", f"{sizes.total:,}", f"{sizes.checkpoint_ratio:.2f}"),
    ]
    ratio = "" if nominal is None else f" at compression ratio {nominal:g}, seed {delta.manifest['seed']}"
    title = f"{delta.path}: {delta.manifest['method']}{ratio}\n"
    return title + table(rows, ("", "before", "after", "ratio"))


def sparse_row(entry: dict, settings: dict) -> Sequence[Any]:
    """Ranks, sparsity asked for and measured, and true ratios of one matrix."""
    (m, n), kept, beta = entry["shape"], entry["kept"], settings.get("preprune_ratio")
    capacity, rank = (m + n) * min(m, n) if len(kept) == 2 else m * n, triplet_count(entry)
    nominal = settings.get("compression_ratio")
    return (
        "" if nominal is None else f"{uv_sparsity(m, n, nominal):.6f}",
        "" if beta is None else f"{preprune_ratio(m, n, beta):.6f}",
        "" if rank is None else rank,
        kept[0],
        kept[1] if len(kept) > 1 else "",
        f"{1 - sum(kept) / capacity:.6f}",
        f"{m * n / sum(kept):.4f}" if sum(kept) else "",
        f"{2 * m * n / entry['bytes']:.4f}" if sum(kept) else "",
    )


def quantized_summary(delta: Delta) -> str:
    """The ratio asked for against what the codes, and all bytes of the linear layers, will take once quantized."""
    settings, entries = delta.manifest["settings"], delta.manifest["matrices"].values()
    dense = sum(2 * entry["shape"][0] * entry["shape"][1] for entry in entries)
    codes, stored = (sum(entry.get(key, 0) for entry in entries) for key in ("quantized_codes", "quantized_bytes"))
    rows = [
        ("codes of the linear layers", f"{dense:,}", f"{codes:,}", f"{dense / max(codes, 1):.2f}"),
        ("bytes of the linear layers", f"{dense:,}", f"{stored:,}", f"{dense / max(stored, 1):.2f}"),
    ]
    title = (
        f"{delta.path}: {delta.manifest['method']} for a quantized ratio of {settings['compression_ratio_qt']:g} "
        f"(accounting: {settings['accounting']}, grid: {settings['grid']}), seed {delta.manifest['seed']}\n"
    )
    return title + table(rows, ("once quantized", "16 bit", "bytes", "ratio"))


def quantized_row(entry: dict, settings: dict) -> Sequence[Any]:
    """Ranks, kept entries, and ratios of one matrix once it is quantized."""
    (m, n), kept = entry["shape"], entry["kept"]
    ratios = [
        f"{2 * m * n / entry[key]:.4f}" if entry.get(key) else "" for key in ("quantized_codes", "quantized_bytes")
    ]
    return (entry.get("rank", ""), kept[0], kept[1] if len(kept) == 2 else "", *ratios)


SPARSE_COLUMNS = ("alpha", "b", "rank", "kept_u", "kept_v", "sparsity", "value_ratio", "byte_ratio")
QUANTIZED_COLUMNS = ("rank", "kept_u", "kept_v", "code_ratio", "byte_ratio")
FACES = {
    "sparse": Summary(sparse_summary, SPARSE_COLUMNS, sparse_row),
    "quantized": Summary(quantized_summary, QUANTIZED_COLUMNS, quantized_row),
}
