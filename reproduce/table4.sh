#!/usr/bin/env bash
# Table 4: ImPart by the two numbers that it is tuned with, beta and C, on the test items.
#
#   bash reproduce/table4.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table4.sh                    the tiny pair, in minutes on a CPU; PAIR=small: a real one
#   bash reproduce/table4.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start table4 "wizardmath_13b wizardcoder_13b llama2_chat_13b" "$@"
for pair in $PAIRS; do
    for C in 0.5 1; do
        for beta in 0.6 0.7 0.8; do
            echo "sparse impart $pair preprune_ratio=$beta C=$C as C${C}_beta$beta"
        done
    done
done | plan --table 4 --first --figure
