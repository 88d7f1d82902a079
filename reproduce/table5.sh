#!/usr/bin/env bash
# Table 5: DARE, LowRank and ImPart by compression ratio.
#
#   bash reproduce/table5.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table5.sh                    the tiny pair's three models, in minutes on a CPU
#   bash reproduce/table5.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start "${FIGURE:-table5}" "wizardmath_13b wizardcoder_13b llama2_chat_13b" "$@"
for pair in $PAIRS; do
    for ratio in $(of "$pair" ratios); do
        if [ -n "${FIGURE:-}" ]; then  # its horizontal lines
            echo "base $pair $ratio drawn"
            echo "finetuned $pair $ratio drawn"
        fi
        for row in dare lowrank impart; do
            echo "sparse $row $pair $ratio"
        done
    done
done | plan --table 5 --first ${FIGURE:+--figure}
