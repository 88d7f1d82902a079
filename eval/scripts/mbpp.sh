#!/usr/bin/env bash
# MBPP pass@1 (EvalPlus, base tests) of a model: results/<model>/mbpp/<seed>.json.
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh" mbpp.py 'MODEL [MODEL ...] [fp16|bf16|fp32|auto]' "$@"
