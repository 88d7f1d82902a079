#!/usr/bin/env bash
# MATH accuracy of a model: results/<model>/math/<seed>.json.
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh" competition_math.py 'MODEL [MODEL ...] [fp16|bf16|fp32|auto]' "$@"
