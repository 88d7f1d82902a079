#!/usr/bin/env bash
# AlpacaEval 2 win rate of a model: results/<model>/alpacaeval/<seed>.json.
source "$(dirname "${BASH_SOURCE[0]}")/_run.sh" alpacaeval.py 'MODEL [MODEL ...] [llama2|llama3|mistral|openchat|auto]' "$@"
