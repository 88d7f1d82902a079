#!/usr/bin/env bash
# Table 1: DARE, LowRank and ImPart at one compression ratio, beside the base and the fine-tuned models.
#
#   bash reproduce/table1.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table1.sh                    the tiny pair's three models, in minutes on a CPU
#   bash reproduce/table1.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
start table1 "wizardmath_13b wizardcoder_13b llama2_chat_13b llama2_chat_7b llama3_instruct_8b" "$@"
for pair in $PAIRS; do
    ratio=$(setting "$pair" ratio)
    whole backbone "$pair" "$ratio" base_model
    whole fine_tuned "$pair" "$ratio" ftm_dir
    for row in dare lowrank impart; do
        sparse $row "$pair" $row "$ratio"
    done
done
finish --table 1
