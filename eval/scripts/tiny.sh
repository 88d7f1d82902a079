#!/usr/bin/env bash
# Scores of models on the tiny pair's skills: results/<model>/tiny_<task>/<seed>.json.
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh" tiny.py 'MODEL [MODEL ...] [fp16|bf16|fp32|auto]' "$@"
