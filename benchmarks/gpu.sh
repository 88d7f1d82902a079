#!/usr/bin/env bash
# On a machine with a CUDA GPU: the CUDA tests, then what benchmarks/gpu.py measures, in about five minutes.
#
#   bash benchmarks/gpu.sh [sections and flags of benchmarks/gpu.py]
#
# Writes what it prints to ${OUT:-runs/gpu}/gpu.md as well, line by line: what was measured before an end is kept.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../requirements/environment.sh"
help_if_asked "$@"
cd "$ROOT"
python=${PYTHON:-python3}
out=${OUT:-runs/gpu}
mkdir -p "$out"

{
    "$python" -m pytest -q -m cuda tests 2>&1 | tail -n 25 || true
    "$python" -u benchmarks/gpu.py "$@"
} | tee "$out/gpu.md"
