"""Sparsifies the delta between a fine-tuned model and its base: ImPart, DARE or LowRank, and ImPart's ablations.

Reads an SVD delta (svd_dir, made by delta.py --svd), or the two checkpoints themselves (base_model and ftm_dir), where
SVD, allocation and masking are one step per matrix. Writes a sparse delta artifact to save_dir, its per-matrix ratios
as CSV to log_dir and, with save_model: true, the dense checkpoint as well.

    python sparsify/sparsify.py --config sparsify/config_example.yaml
    python sparsify/sparsify.py --config configs/rows/impart.yaml --config configs/tiny/code/pair.yaml \\
      compression_ratio=16 seed=1 save_dir=runs/code_16
    accelerate launch sparsify/sparsify.py --config sparsify/config_example.yaml
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python sparsify/sparsify.py`: import from the repository root, not from sparsify/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart.errors import run
from sparsify.run import sparsify


def main(arguments: Sequence[str]) -> None:
    sparsify("sparse", __doc__, arguments)


if __name__ == "__main__":
    run(main)
