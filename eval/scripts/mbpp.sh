#!/usr/bin/env bash
# MBPP pass@1 (EvalPlus, base tests) of a model: results/<model>/mbpp/<seed>.json.   Usage: mbpp.sh MODEL [fp16|bf16|fp32|auto] [flags of eval/mbpp.py]
set -euo pipefail

if [[ $# -lt 1 ]]; then
  echo "error: MODEL is missing; usage: bash eval/scripts/mbpp.sh MODEL [fp16|bf16|fp32|auto] [flags of eval/mbpp.py]" >&2
  exit 2
fi
exec "${PYTHON:-python}" "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/mbpp.py" "$@"
