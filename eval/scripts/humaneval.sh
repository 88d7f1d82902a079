#!/usr/bin/env bash
# HumanEval pass@1 of a model: results/<model>/humaneval/<seed>.json.
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh" humaneval.py 'MODEL [MODEL ...] [fp16|bf16|fp32|auto]' "$@"
