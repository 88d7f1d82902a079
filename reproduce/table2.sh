#!/usr/bin/env bash
# Table 2: the model pairs, with the settings that the other scripts read. Runs nothing.
#
#   bash reproduce/table2.sh
#   PAIR=tiny bash reproduce/table2.sh
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start table2 "wizardmath_13b wizardcoder_13b llama2_chat_13b llama2_chat_7b llama3_instruct_8b" --dry-run "$@"
echo "| pair | base model | fine-tuned model | benchmarks | dtype | beta | C |"
echo "|---|---|---|---|---|---|---|"
for pair in $PAIRS; do
    values=$(of "$pair" name base_model ftm_dir benchmarks eval_dtype preprune_ratio C)
    mapfile -t values <<< "$values"
    printf '|'; printf ' %s |' "${values[@]}"; echo
done
