#!/usr/bin/env bash
# Scores of models on the tiny pair's skills: results/<model>/tiny_<task>/<seed>.json.   Usage: tiny.sh MODEL [MODEL ...] [fp16|bf16|fp32|auto] [flags of eval/tiny.py]
set -euo pipefail

if [[ $# -lt 1 ]]; then
  echo "error: MODEL is missing; usage: bash eval/scripts/tiny.sh MODEL [MODEL ...] [fp16|bf16|fp32|auto] [flags of eval/tiny.py]" >&2
  exit 2
fi
exec "${PYTHON:-python}" "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/tiny.py" "$@"
