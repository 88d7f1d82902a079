#!/usr/bin/env bash
# Table 5: DARE, LowRank and ImPart by compression ratio.
#
#   bash reproduce/table5.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table5.sh                    the tiny pair, in minutes on a CPU; PAIR=small: a real one
#   bash reproduce/table5.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start "${FIGURE:-table5}" "wizardmath_13b wizardcoder_13b llama2_chat_13b" "$@"
for pair in $PAIRS; do
    for ratio in $(of "$pair" ratios); do
        echo "base $pair $ratio drawn"  # horizontal lines of the figure, and what the gain of a loss is measured by
        echo "finetuned $pair $ratio drawn"
        for row in dare lowrank impart; do
            echo "sparse $row $pair $ratio"
        done
    done
done | plan --table 5 --first ${FIGURE:+--figure}
