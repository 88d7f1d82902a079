"""The walk over a model that every method shares: matrix by matrix, shard by shard, resumable."""

import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

from impart.artifact import Delta
from impart.artifact_writer import DeltaWriter
from impart.encodings import Encoded
from impart.report import Report, progress
from impart.sources import Source


def compress(
    source: Source,
    encode: Callable[[str], Encoded],
    path: str | Path,
    head: Mapping,
    *,
    needed_bytes: int,
    overwrite: bool,
    report: Report,
    what: str,
) -> Delta | None:
    """Encodes every matrix of `source` into the artifact `path`; returns it, or None in all processes but the first.

    `head`: kind, method, settings and seed; `encode(name)` gives one matrix as it is stored.
    """
    writer = DeltaWriter(
        path,
        {**head, **source.head()},
        dtypes={name: source.dtype(name) for name in source.matrices},
        extras=source.extras,
        dropped=source.dropped,
        needed_bytes=needed_bytes + source.extra_bytes(),
        overwrite=overwrite,
    )
    pending = writer.pending()
    steps = progress([name for shard in pending for name in shard.matrices], what=what)
    for shard in pending:
        encoded, rows = {}, []
        for name in islice(steps, len(shard.matrices)):
            started = time.perf_counter()
            encoded[name] = encode(name)
            rows.append({"name": name, "seconds": round(time.perf_counter() - started, 4), **encoded[name].facts})
        writer.write(shard, encoded, {name: source.extra(name) for name in shard.extras}, rows)
    return writer.finish(source.companions(), report)
