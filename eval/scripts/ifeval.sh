#!/usr/bin/env bash
# IFEval prompt-level loose accuracy of a model: results/<model>/ifeval/<seed>.json.
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh" ifeval.py 'MODEL [MODEL ...] [fp16|bf16|fp32|auto]' "$@"
