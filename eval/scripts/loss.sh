#!/usr/bin/env bash
# Held-out losses of models: results/<model>/loss_<task>/<seed>.json.
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh" loss.py 'MODEL [MODEL ...] [fp16|bf16|fp32|auto] --tasks TASKS' "$@"
