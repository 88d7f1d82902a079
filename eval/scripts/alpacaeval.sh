#!/usr/bin/env bash
# AlpacaEval 2 win rate of a model: results/<model>/alpacaeval/<seed>.json.   Usage: alpacaeval.sh MODEL [TEMPLATE] [flags of eval/alpacaeval.py]
set -euo pipefail

if [[ $# -lt 1 ]]; then
  echo "error: MODEL is missing; usage: bash eval/scripts/alpacaeval.sh MODEL [llama2|llama3|mistral|openchat|auto] [flags of eval/alpacaeval.py]" >&2
  exit 2
fi
exec "${PYTHON:-python}" "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/alpacaeval.py" "$@"
