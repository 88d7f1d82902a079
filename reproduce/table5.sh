#!/usr/bin/env bash
# Table 5: DARE, LowRank and ImPart by compression ratio.
#
#   bash reproduce/table5.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table5.sh                    the tiny pair's three models, in minutes on a CPU
#   bash reproduce/table5.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
ONE_BENCHMARK=yes
start ${FIGURE:-table5} "wizardmath_13b wizardcoder_13b llama2_chat_13b" "$@"
for pair in $PAIRS; do
    for ratio in $(setting "$pair" ratios); do
        if [ -n "${FIGURE:-}" ]; then  # its horizontal lines
            whole backbone "$pair" "$ratio" base_model
            whole fine_tuned "$pair" "$ratio" ftm_dir
        fi
        for row in dare lowrank impart; do
            sparse $row "$pair" $row "$ratio"
        done
    done
done
finish --table 5 ${FIGURE:+--figure "$OUT/$FIGURE.png" --figure "$OUT/$FIGURE.svg"}
