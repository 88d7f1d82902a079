"""delta.json: read without trust, every field checked before anything uses it, and signed with its own sha256.

An artifact may come from a stranger, or out of a broken download. What this module lets through has the fields and
types that the readers rely on, fits the headers of its shards, and names no file outside of its folder. Nothing here
reads the values of a tensor: an artifact of a 13B model opens in some hundredths of a second.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from impart.companions import is_plain_name, kind_of, stays_inside
from impart.dtypes import DTYPES
from impart.encodings.encoded import Layout, encoding_of
from impart.errors import InputError
from impart.json_fields import REMEDY, Field, parsed, short
from impart.masks import LEVELS, MASKS
from impart.matrices import tensor_of
from impart.shard_header import ShardHeader, read_header

FORMAT, VERSION = "impart-delta", 2  # 1: the fingerprints covered samples of the weights, and no sha256 was needed
KINDS = ("svd", "sparse", "quantized")
CHECKSUM = "sha256"  # the last key
MAX_LENGTH = 1 << 31  # of one dimension of a tensor
HEX_64 = re.compile(r"[0-9a-f]{64}")


def read_manifest(file: Path) -> dict[str, Any]:
    """The content of a delta.json and of nothing else, checked against itself and against its shards' headers.

    InputError, one line that names the file, the field, its value and what was expected.
    """
    root = Field(file, "", parsed(file))
    found = root.value.get("format") if isinstance(root.value, dict) else None
    if found != FORMAT:
        raise InputError(f"{file} has format {short(found)}, not {FORMAT!r}; name a folder that delta.py made")
    version = root["version"].integer(1)
    if version > VERSION:
        raise InputError(
            f"{str(file.parent)!r} has format version {version}, and this software reads up to {VERSION}; update it"
        )
    if version < VERSION:
        raise InputError(
            f"{str(file.parent)!r} has format version {version}, which told base models apart by samples of their "
            "weights; make the delta again"
        )
    _check_head(root)
    _check_entries(root)
    if root[CHECKSUM].value != checksum(root.value):
        raise InputError(f"{file} is altered (its content does not have the {CHECKSUM} that it names); {REMEDY}")
    _check_shards(root)
    return root.value


def checksum(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest's content in JSON's shortest form, without the checksum itself; the order counts."""
    content = {key: value for key, value in manifest.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def _check_head(root: Field) -> None:
    """All that is said of the delta as a whole."""
    root["kind"].matching(KINDS.__contains__, f"one of {', '.join(KINDS)}")
    root["method"].text()
    if root["seed"].value is not None:
        root["seed"].integer()
    settings = root["settings"].mapping()
    for key in ("compression_ratio", "compression_ratio_qt"):
        if settings.value.get(key) is not None:
            settings[key].number()
    for key in ("base", "finetuned"):
        model = root[key].mapping()
        model["source"].text()
        model["fingerprint"].matching(HEX_64.fullmatch, "a sha256 in 64 hexadecimal digits")
        model["bytes"].integer(0)
    for key in ("versions", "matrices", "extras"):
        root[key].mapping()
    held = {*map(tensor_of, root.value["matrices"]), *root.value["extras"]}
    for name in root["dropped"].elements():
        name.text()
        if name.value in held:
            name.refuse("the name of a parameter that the fine-tuned model lacks: the delta holds it")
    for file, shard in root["shards"].items():
        if not is_plain_name(file) or not file.endswith(".safetensors"):
            raise InputError(f"{root.file}: shards names {short(file)}, which is no plain name of a safetensors file")
        shard.mapping()["bytes"].integer(8)
        shard["header_bytes"].integer(8)
        shard["sha256"].matching(HEX_64.fullmatch, "a sha256 in 64 hexadecimal digits")
    for file, digest in root["files"].items():
        if kind_of(file) is None:
            raise InputError(
                f"{root.file}: files names {short(file)}, which is no small file of a model such as config or "
                f"tokenizer; {REMEDY}"
            )
        digest.matching(HEX_64.fullmatch, "a sha256 in 64 hexadecimal digits")


def _check_entries(root: Field) -> None:
    """Every matrix and every extra, and that they fit into the fine-tuned model."""
    total, compressed = 0, set(map(tensor_of, root.value["matrices"]))
    for name, entry in root["matrices"].items():
        total += _check_matrix(root, name, entry.mapping())
    for name, extra in root["extras"].items():
        if name in compressed:
            extra.refuse("the only entry of this name: it is among the matrices as well")
        _check_place(root, extra.mapping())
        shape = [length.integer(0, MAX_LENGTH) for length in extra["shape"].elements()]
        extra["dtype"].matching(DTYPES.__contains__, f"one of {', '.join(DTYPES)}")
        size = math.prod(shape) * DTYPES[extra.value["dtype"]].itemsize
        extra["bytes"].integer(0)
        extra["bytes"].equals(size, "as its shape and dtype say")
        total += size
    stated = root["finetuned"]["bytes"]
    if total > stated.value:
        stated.refuse(f"the size of a model that holds these matrices and extras, at least {total}")


def _check_place(root: Field, entry: Field) -> None:
    entry["shard"].matching(root.value["shards"].__contains__, "one of the shards that are listed")


def _check_matrix(root: Field, name: str, entry: Field) -> int:
    """One matrix: its shape, its encoding's facts and tensors. Returns its bytes in the fine-tuned model."""
    _check_place(root, entry)
    m, n = (length.integer(1, MAX_LENGTH) for length in entry["shape"].elements(2))
    entry["dtype"].matching(DTYPES.__contains__, f"one of {', '.join(DTYPES)}")
    dtype = DTYPES[entry.value["dtype"]]
    entry["bytes"].integer(0)
    _check_encoded(entry, m, n)
    if not dtype.is_floating_point and hasattr(encoding_of(entry.value["encoding"]), "dense"):
        entry["dtype"].refuse("a floating-point dtype, as a delta is of numbers")
    return m * n * dtype.itemsize


def _check_encoded(entry: Field, m: int, n: int) -> None:
    """What is stored of an (m, n) matrix, or of a part of it: an encoding, its tensors, its facts."""
    try:
        encoding = encoding_of(entry["encoding"].text())
    except InputError as error:
        raise InputError(f"{entry.file}: {entry.place}: {error}") from error
    suffixes = [suffix.text() for suffix in entry["tensors"].elements()]
    required = [suffix for suffix in encoding.TENSORS if suffix not in getattr(encoding, "OPTIONAL", ())]
    if len(set(suffixes)) < len(suffixes) or not set(required) <= set(suffixes) <= set(encoding.TENSORS):
        entry["tensors"].refuse(f"the tensors of {entry.value['encoding']}: {', '.join(encoding.TENSORS) or 'none'}")
    for part, encodings in getattr(encoding, "PARTS", {}).items():
        _check_encoded(_part_of(entry, part, encodings), m, n)
    facts = {*encoding.FACTS, *(("seed", "mask") if "keep" in suffixes else ())}
    for fact, check in _FACTS.items():
        if fact in facts:
            check(entry[fact], entry, m, n)
        elif fact in ("rank", "plan") and fact in entry.value:
            entry[fact].refuse(f"absent, as encoding {entry.value['encoding']} has none")
    if not suffixes and sum(entry.value["kept"]):
        entry["kept"].refuse("0, as no tensor is stored")


def _part_of(entry: Field, part: str, encodings: Collection[str]) -> Field:
    """The entry of one of a matrix's parts, with those tensors that bear its name."""
    field, start = entry[part].mapping(), f"{part}."
    field["encoding"].matching(encodings.__contains__, f"one of {', '.join(encodings)}")
    tensors = [suffix.removeprefix(start) for suffix in entry.value["tensors"] if suffix.startswith(start)]
    return replace(field, value={**field.value, "tensors": tensors})


def _check_rank(field: Field, entry: Field, m: int, n: int) -> None:
    field.integer(0, 0 if not entry.value["tensors"] else min(m, n))


def _check_kept(field: Field, entry: Field, m: int, n: int) -> None:
    """At most the entries of U and V, or of dW itself, all of them where there is no mask; or those of its parts."""
    parts = getattr(encoding_of(entry.value["encoding"]), "PARTS", ())
    if parts:
        field.equals([count for part in parts for count in entry.value[part]["kept"]], "those of its parts")
        return
    rank = entry.value.get("rank")
    most = [m * n] if rank is None else [m * rank, n * rank]
    counts = field.elements(len(most))
    for count, high in zip(counts, most, strict=True):
        count.integer(0, high)
        if rank is not None and entry.value["tensors"] and "keep" not in entry.value["tensors"]:
            count.equals(high, "all entries, as no keep thresholds are stored")


def _check_bits(field: Field, entry: Field, m: int, n: int) -> None:
    encoding = entry.value["encoding"]
    if encoding in ("quantized_entries", "uniform_entries"):
        field.integer(1, 8)
    elif not 0 <= field.number() <= 64:
        field.refuse("a number of bits from 0 to 64")


def _check_plan(field: Field, entry: Field, m: int, n: int) -> None:
    counts = []
    for part in field.elements():
        bits, count = part.elements(2)
        bits.integer(1, 8)
        counts.append(count.integer(1, entry.value["rank"]))
    if sum(counts) != entry.value["rank"]:
        field.refuse(f"a plan of {entry.value['rank']} triplets, which is the rank")


def _check_scale(field: Field, *_: Any) -> None:
    field.number()


# In this order: what counts the triplets' entries relies on the rank.
_FACTS: dict[str, Callable[[Field, Field, int, int], Any]] = {
    "rank": _check_rank,
    "kept": _check_kept,
    "bits": _check_bits,
    "plan": _check_plan,
    "seed": lambda field, *_: field.integer(),
    "mask": lambda field, *_: field.matching(MASKS.__contains__, f"one of {', '.join(MASKS)}"),
    "keep": lambda field, *_: field.integer(1, LEVELS),
    "rescale": lambda field, *_: field.boolean(),
    "s_1": _check_scale,
    "scale": _check_scale,
    "mu": _check_scale,
    "low": _check_scale,
    "step": _check_scale,
}


def _check_shards(root: Field) -> None:
    """Every shard is a file of the folder, has its size, and by its header the tensors that the entries promise."""
    expected: dict[str, dict[str, tuple[str, tuple[Any, ...]]]] = {file: {} for file in root.value["shards"]}
    for name, entry in root.value["matrices"].items():
        layout: Layout = encoding_of(entry["encoding"]).layout(tuple(entry["shape"]), entry)
        expected[entry["shard"]] |= {f"{name}.{suffix}": layout[suffix] for suffix in entry["tensors"]}
    for name, extra in root.value["extras"].items():
        expected[extra["shard"]][name] = (extra["dtype"], tuple(extra["shape"]))
    folder, headers = root.file.parent, {}
    for file, shard in root["shards"].items():
        what = f"shard {file} of delta {str(folder)!r}"
        headers[file] = _header_of(folder, file, shard, what)
        _check_header(headers[file], expected[file], what)
    for name, entry in root["matrices"].items():
        sizes = headers[entry.value["shard"]].sizes
        stored = sum(sizes[f"{name}.{suffix}"] for suffix in entry.value["tensors"])
        entry["bytes"].equals(stored, "the size of its tensors in the shard")


def _header_of(folder: Path, file: str, shard: Field, what: str) -> ShardHeader:
    path = folder / file
    if not path.exists():
        raise InputError(f"{what} is missing; {REMEDY}")
    if not path.is_file() or not stays_inside(path, folder):
        raise InputError(f"{what} is no file of that folder but a link out of it, a pipe, a device or a folder")
    size = path.stat().st_size
    if size != shard.value["bytes"]:
        raise InputError(
            f"{what} is altered or truncated (it has {size} bytes, not the {shard.value['bytes']} in delta.json); "
            f"{REMEDY}"
        )
    header = read_header(path, what)
    shard["header_bytes"].equals(header.bytes, "the size of its header")
    return header


def _check_header(header: ShardHeader, expected: Mapping[str, tuple[str, tuple[Any, ...]]], what: str) -> None:
    for name in (*expected, *header.specs):
        if name not in header.specs or name not in expected:
            lacks = "lacks the tensor" if name in expected else "holds a tensor that delta.json does not know:"
            raise InputError(f"{what} {lacks} {short(name)}; {REMEDY}")
    for name, (dtypes, shape) in expected.items():
        dtype, found = header.specs[name]
        fits = len(found) == len(shape) and all(b in (..., a) for a, b in zip(found, shape, strict=True))
        if dtype not in dtypes.split() or not fits:
            wanted = ", ".join("any" if length is ... else str(length) for length in shape)
            raise InputError(
                f"{what}: {short(name)} is {dtype} of shape {list(found)}, but delta.json says {dtypes} of "
                f"[{wanted}]; {REMEDY}"
            )
