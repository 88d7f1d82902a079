"""The walk over a model that every method shares: matrix by matrix, shard by shard, resumable."""

import time
from itertools import islice
from pathlib import Path

from impart.artifact import Delta
from impart.artifact_writer import DeltaWriter
from impart.method import Method
from impart.report import Report, progress
from impart.sources import Source


def compress(
    source: Source, method: Method, path: str | Path, *, kind: str, seed: int | None, overwrite: bool, report: Report
) -> Delta | None:
    """Encodes every matrix of `source` into the artifact `path`; returns it, or None in all processes but the first.

    `kind` is the artifact's: svd, sparse or quantized. `seed` decides the masks, None where there are none.
    """
    shapes = {name: source.shape(name) for name in source.matrices}
    head = {"kind": kind, "method": method.name, "settings": method.settings(), "seed": seed}
    writer = DeltaWriter(
        path,
        {**head, **source.head()},
        dtypes={name: source.dtype(name) for name in source.matrices},
        extras=source.extras,
        dropped=source.dropped,
        needed_bytes=method.expected_bytes(shapes) + source.extra_bytes(),
        overwrite=overwrite,
    )
    pending = writer.pending()
    steps = progress([name for shard in pending for name in shard.matrices], what=method.name)
    for shard in pending:
        encoded, rows = {}, []
        for name in islice(steps, len(shard.matrices)):
            started = time.perf_counter()
            encoded[name] = method.encode(source.matrix(name), seed or 0)
            rows.append({"name": name, "seconds": round(time.perf_counter() - started, 4), **encoded[name].facts})
        writer.write(shard, encoded, {name: source.extra(name) for name in shard.extras}, rows)
    return writer.finish(source.companions(), report)
