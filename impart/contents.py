"""What a delta holds: the numbers of `delta.py --info`, and how they are printed."""

import math
from collections import defaultdict
from typing import Any

from impart.architecture import weight_type
from impart.artifact import Delta, triplet_count
from impart.coverage import Coverage, of_delta
from impart.report import table

MOST_KINDS = 8  # of whole parameters that are printed


def contents(delta: Delta) -> dict[str, Any]:
    """Method and settings, an entry per type and shape of matrix, nominal ratio and true sizes in bytes; plain JSON."""
    manifest, sizes = delta.manifest, delta.sizes()
    return {
        "path": str(delta.path),
        **{key: manifest[key] for key in ("kind", "method", "settings", "seed", "base", "finetuned")},
        "types": _types(delta),
        "coverage": of_delta(delta).facts(),
        "extras": len(manifest["extras"]),
        "whole": _whole_kinds(delta),
        "least_used_budget": _least_used(delta),
        "nominal_ratio": manifest["settings"].get("compression_ratio_qt")
        or manifest["settings"].get("compression_ratio"),
        "bytes": {
            "linear": {"dense": sizes.linear_dense, "values": sizes.values, "delta": sizes.linear},
            "parts": delta.parts(),
            "headers": sum(shard["header_bytes"] for shard in manifest["shards"].values()),
            "extras": sizes.extras,
            "manifest": sizes.manifest,
            "checkpoint": {"dense": sizes.checkpoint, "delta": sizes.total},
        },
        "ratios": {"linear": sizes.linear_ratio, "checkpoint": sizes.checkpoint_ratio},
    }


def _types(delta: Delta) -> list[dict[str, Any]]:
    """Per weight type and shape: number of matrices, mean rank (None: dense), and means of kept values and bytes."""
    groups = defaultdict(list)
    for name, entry in delta.manifest["matrices"].items():
        groups[weight_type(name), tuple(entry["shape"])].append(entry)
    found = []
    for (kind, (m, n)), entries in groups.items():
        ranks = [rank for entry in entries if (rank := triplet_count(entry)) is not None]
        kept, count = sum(sum(entry["kept"]) for entry in entries), len(entries)
        found.append(
            {
                "weight_type": kind,
                "shape": [m, n],
                "matrices": count,
                "mean_rank": sum(ranks) / len(ranks) if ranks else None,
                "kept": kept // count,
                "value_ratio": m * n * count / kept if kept else None,
                "bytes": sum(entry["bytes"] for entry in entries) // count,
            }
        )
    return found


def _whole_kinds(delta: Delta) -> list[dict[str, Any]]:
    """Matrices and experts in one tensor among the extras, by type and shape: number and bytes, the largest first."""
    groups = defaultdict(list)
    for name, extra in delta.manifest["extras"].items():
        if len(extra["shape"]) > 1:
            groups[weight_type(name), tuple(extra["shape"])].append(extra["bytes"])
    found = [
        {"weight_type": kind, "shape": list(shape), "tensors": len(sizes), "bytes": sum(sizes)}
        for (kind, shape), sizes in groups.items()
    ]
    return sorted(found, key=lambda one: -one["bytes"])


def _least_used(delta: Delta) -> dict[str, Any] | None:
    """The matrix that uses the smallest share of its budget, 2 m n / CR bytes of values; None without a ratio.

    Algorithm 1 stops at whole columns and at values that it keeps in full, which leaves more of a small matrix unused.
    """
    quantized = delta.manifest["kind"] == "quantized"
    nominal = delta.manifest["settings"].get("compression_ratio_qt" if quantized else "compression_ratio")
    if not nominal or not delta.names():
        return None

    def used(name: str) -> float:
        entry = delta.manifest["matrices"][name]
        return sum(entry["kept"]) * entry["bits"] / 8 / (2 * math.prod(entry["shape"]) / nominal)

    worst = min(delta.names(), key=used)
    return {"matrix": worst, "shape": list(delta.shape(worst)), "used": used(worst)}


def printed(found: dict[str, Any]) -> str:
    """The contents for people: three lines of what it is, a line per type of matrix, nominal against true sizes."""
    settings = ", ".join(f"{key}={value}" for key, value in found["settings"].items() if value is not None)
    seed = "" if found["seed"] is None else f", seed {found['seed']}"
    head = f"{found['path']}: {found['kind']} delta, method {found['method']} ({settings}){seed}"
    lines = [
        head,
        f"base:       {found['base']['source']} (fingerprint {found['base']['fingerprint'][:12]})",
        f"fine-tuned: {found['finetuned']['source']}",
        "",
        _type_table(found["types"]),
        "",
        *_coverage(found["coverage"]),
        f"{found['extras']} extra parameters outside the compressed set changed and are stored whole",
        *(
            f"  {one['weight_type']}, {_by(one['shape'])}: {one['tensors']} of {one['bytes']:,} bytes"
            for one in found["whole"][:MOST_KINDS]
        ),
        "",
    ]
    if (worst := found["least_used_budget"]) is not None:
        share = f"{worst['used']:.0%} of the values that its ratio allows"
        lines += [f"least used budget: {worst['matrix']} ({_by(worst['shape'])}) holds {share}", ""]
    lines.append(_size_table(found))
    if "rho" in found:
        advice = "; ".join(f"at a ratio of {ratio}: {method}" for ratio, method in found["recommended"].items())
        lines += ["", f"rho {found['rho']:.3f} (norm(dW) / norm(W)); {advice} (README, Beyond the paper)"]
    return "\n".join(lines)


def _coverage(facts: dict[str, Any]) -> list[str]:
    """What is compressed and what travels whole, with a warning where that is much."""
    found = Coverage(facts["compressed"], facts["whole"])
    warning = found.warning()
    return [*found.lines(), *([f"warning: {warning}"] if warning else [])]


def _by(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _type_table(types: list[dict[str, Any]]) -> str:
    rows = [
        (
            one["weight_type"],
            _by(one["shape"]),
            one["matrices"],
            "dense" if one["mean_rank"] is None else f"{one['mean_rank']:.1f}",
            f"{one['kept']:,}",
            "empty" if one["value_ratio"] is None else f"{one['value_ratio']:.2f}",
            f"{one['bytes']:,}",
        )
        for one in types
    ]
    return table(rows, ("weight type", "shape", "matrices", "mean rank", "kept values", "value ratio", "bytes"))


def _size_table(found: dict[str, Any]) -> str:
    sizes, ratios, nominal = found["bytes"], found["ratios"], found["nominal_ratio"]
    linear, whole = sizes["linear"], sizes["checkpoint"]
    dense, values = f"{linear['dense']:,}", linear["values"]
    rows = [
        ("linear layers, values only", dense, f"{values:,}", f"{linear['dense'] / max(values, 1):.2f}"),
        *((f"  {title}", "", f"{size:,}", "") for title, size in sizes["parts"].items()),
        ("  headers of shards", "", f"{sizes['headers']:,}", ""),
        ("linear layers, all bytes", dense, f"{linear['delta']:,}", f"{ratios['linear']:.2f}"),
        ("extras", "", f"{sizes['extras']:,}", ""),
        ("delta.json", "", f"{sizes['manifest']:,}", ""),
        ("whole checkpoint", f"{whole['dense']:,}", f"{whole['delta']:,}", f"{ratios['checkpoint']:.2f}"),
    ]
    return table(
        rows, (f"bytes (nominal ratio {nominal:g})" if nominal else "bytes", "16 bit / as stored", "delta", "ratio")
    )
