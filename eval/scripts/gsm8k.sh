#!/usr/bin/env bash
# GSM8K accuracy of a model: results/<model>/gsm8k/<seed>.json.
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh" gsm8k.py 'MODEL [MODEL ...] [fp16|bf16|fp32|auto]' "$@"
