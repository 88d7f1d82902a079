#!/usr/bin/env bash
# MATH accuracy of a model: results/<model>/math/<seed>.json.   Usage: math.sh MODEL [fp16|bf16|fp32|auto] [flags of eval/competition_math.py]
set -euo pipefail

if [[ $# -lt 1 ]]; then
  echo "error: MODEL is missing; usage: bash eval/scripts/math.sh MODEL [fp16|bf16|fp32|auto] [flags of eval/competition_math.py]" >&2
  exit 2
fi
exec "${PYTHON:-python}" "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/competition_math.py" "$@"
