#!/usr/bin/env bash
# Table 1: DARE, LowRank and ImPart at one compression ratio, beside the base and the fine-tuned models.
#
#   bash reproduce/table1.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table1.sh                    the tiny pair, in minutes on a CPU; PAIR=small: a real one
#   bash reproduce/table1.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start table1 "wizardmath_13b wizardcoder_13b llama2_chat_13b llama2_chat_7b llama3_instruct_8b" "$@"
for pair in $PAIRS; do
    echo "base $pair"
    echo "finetuned $pair"
    for row in dare lowrank impart; do
        echo "sparse $row $pair"
    done
done | plan --table 1
