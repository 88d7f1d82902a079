#!/usr/bin/env bash
# Table 3: ImPart without pre-pruning, without importance, without both, and without rescaling.
#
#   bash reproduce/table3.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table3.sh                    the tiny pair, in minutes on a CPU; PAIR=small: a real one
#   bash reproduce/table3.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start table3 "wizardmath_13b wizardcoder_13b llama2_chat_13b" "$@"
for pair in $PAIRS; do
    for row in impart no_preprune no_importance no_preprune_no_importance no_rescale; do
        echo "sparse $row $pair"
    done
done | plan --table 3 --first
