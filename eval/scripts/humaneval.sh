#!/usr/bin/env bash
# HumanEval pass@1 of a model: results/<model>/humaneval/<seed>.json.   Usage: humaneval.sh MODEL [fp16|bf16|fp32|auto] [flags of eval/humaneval.py]
set -euo pipefail

if [[ $# -lt 1 ]]; then
  echo "error: MODEL is missing; usage: bash eval/scripts/humaneval.sh MODEL [fp16|bf16|fp32|auto] [flags of eval/humaneval.py]" >&2
  exit 2
fi
exec "${PYTHON:-python}" "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/humaneval.py" "$@"
