#!/usr/bin/env bash
# IFEval prompt-level loose accuracy of a model: results/<model>/ifeval/<seed>.json.   Usage: ifeval.sh MODEL [fp16|bf16|fp32|auto] [flags of eval/ifeval.py]
set -euo pipefail

if [[ $# -lt 1 ]]; then
  echo "error: MODEL is missing; usage: bash eval/scripts/ifeval.sh MODEL [fp16|bf16|fp32|auto] [flags of eval/ifeval.py]" >&2
  exit 2
fi
exec "${PYTHON:-python}" "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/ifeval.py" "$@"
