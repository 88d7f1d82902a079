"""The walk over a model that every method shares: matrix by matrix, shard by shard, resumable."""

import time
from functools import partial
from itertools import islice
from pathlib import Path

from impart.artifact import Delta
from impart.artifact_writer import DeltaWriter, Shard
from impart.costs import Work
from impart.encodings.encoded import Encoded
from impart.method import Method
from impart.report import Report, progress
from impart.sources import Source
from impart.workers import GPU_MATRICES, in_order, on_own_stream

SHARDS_WRITTEN = 2  # at a time, while a GPU goes on: each is written, synced and hashed


def expected_work(source: Source, method: Method) -> Work:
    """What `compress` will have to do."""
    shapes = {name: source.shape(name) for name in source.matrices}
    return Work(
        shapes.values(),
        written=method.expected_bytes(shapes) + sum(source.extra_sizes().values()),
        svds=int(method.needs_svd and source.computes_svd),
        masked=method.seeded,
    )


def compress(
    source: Source, method: Method, path: str | Path, *, kind: str, seed: int | None, overwrite: bool, report: Report
) -> Delta | None:
    """Encodes every matrix of `source` into the artifact `path`; returns it, or None in all processes but the first.

    `kind` is the artifact's: svd, sparse or quantized. `seed` decides the masks, None where there are none.
    """
    head = {"kind": kind, "method": method.name, "settings": method.settings(), "seed": seed}
    writer = DeltaWriter(
        path,
        {**head, **source.head()},
        dtypes={name: source.dtype(name) for name in source.matrices},
        extras=source.extras,
        dropped=source.dropped,
        needed_bytes=expected_work(source, method).written,
        overwrite=overwrite,
    )
    pending = writer.pending()
    if pending:
        method = method.fitted([source.matrix(name) for name in source.matrices])
    # On a CPU one matrix takes all threads, and the memory of one is the peak.
    at_once, written_at_once = (GPU_MATRICES, SHARDS_WRITTEN) if source.device.type == "cuda" else (1, 1)
    matrices = in_order(
        on_own_stream(partial(_encode, source, method, seed or 0), source.device),
        progress([name for shard in pending for name in shard.matrices], what=method.name),
        at_once,
    )
    shards = ((shard, list(islice(matrices, len(shard.matrices)))) for shard in pending)
    for _ in in_order(partial(_write, writer, source), shards, written_at_once):
        pass
    return writer.finish(source.companions(), report)


def _encode(source: Source, method: Method, seed: int, name: str) -> tuple[Encoded, float]:
    """One matrix, in main memory, and the seconds that it took."""
    started = time.perf_counter()
    encoded = method.encode(source.matrix(name), seed).to("cpu")
    return encoded, time.perf_counter() - started


def _write(writer: DeltaWriter, source: Source, found: tuple[Shard, list[tuple[Encoded, float]]]) -> None:
    """One shard: its encoded matrices, each with the seconds that it took, and its extras."""
    shard, parts = found
    encoded = {name: matrix for name, (matrix, _) in zip(shard.matrices, parts, strict=True)}
    rows = [
        {"name": name, "seconds": round(seconds, 4), **matrix.facts}
        for name, (matrix, seconds) in zip(shard.matrices, parts, strict=True)
    ]
    writer.write(shard, encoded, {name: source.extra(name) for name in shard.extras}, rows)
