"""Sparsifies a delta so that it meets a ratio once quantized: ImPart by Algorithm 3, or Delta-CoMe's or DARE's part.

Reads what sparsify.py reads, with the same YAML keys, and compression_ratio_qt (without it, compression_ratio is taken
for the quantized ratio). Writes a sparse delta artifact in 16 bit; quantize/sparse_llama.py quantizes it.

    python sparsify/sparsify_quant.py --config sparsify/config_example.yaml
    python sparsify/sparsify_quant.py --config configs/rows/impart_qt.yaml --config configs/tiny/code/pair.yaml \\
      compression_ratio_qt=32 save_dir=runs/code_32.sparse
    python sparsify/sparsify_quant.py --config sparsify/config_example.yaml method=deltacome \\
      save_dir=runs/deltacome.sparse
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python sparsify/sparsify_quant.py`: import from the repository root, not from sparsify/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart.errors import run
from sparsify.run import sparsify


def main(arguments: Sequence[str]) -> None:
    sparsify("quantized", __doc__, arguments)


if __name__ == "__main__":
    run(main)
