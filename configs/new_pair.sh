#!/usr/bin/env bash
# A folder of configs/ for a model pair of your own: one short YAML, with which every script of reproduce/ runs.
#
#   bash configs/new_pair.sh BASE FT NAME [benchmarks]
#   bash configs/new_pair.sh mistralai/Mistral-7B-v0.1 meta-math/MetaMath-Mistral-7B metamath_7b "gsm8k math"
#   bash reproduce/table1.sh --pairs metamath_7b --dry-run
#
# BASE and FT are folders or hub ids. Installs nothing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../requirements/environment.sh"
help_if_asked "$@"
[ $# -ge 3 ] && [ $# -le 4 ] || { echo "error: usage: bash configs/new_pair.sh BASE FT NAME [benchmarks]" >&2; exit 2; }
find_environment core
exec "$PYTHON" "$ROOT/reproduce/new_pair.py" "$@"
