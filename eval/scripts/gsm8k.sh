#!/usr/bin/env bash
# GSM8K accuracy of a model: results/<model>/gsm8k/<seed>.json.   Usage: gsm8k.sh MODEL [fp16|bf16|fp32|auto] [flags of eval/gsm8k.py]
set -euo pipefail

if [[ $# -lt 1 ]]; then
  echo "error: MODEL is missing; usage: bash eval/scripts/gsm8k.sh MODEL [fp16|bf16|fp32|auto] [flags of eval/gsm8k.py]" >&2
  exit 2
fi
exec "${PYTHON:-python}" "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/gsm8k.py" "$@"
