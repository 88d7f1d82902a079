#!/usr/bin/env bash
# Table 7: BitDelta, DARE-Qt, Delta-CoMe and ImPart-Qt by quantized ratio.
#
#   bash reproduce/table7.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table7.sh                    the tiny pair's three models, in minutes on a CPU
#   bash reproduce/table7.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
ONE_BENCHMARK=yes
start ${FIGURE:-table7} "wizardmath_13b wizardcoder_13b llama2_chat_13b" "$@"
for pair in $PAIRS; do
    for ratio in $(setting "$pair" ratios_qt); do
        if [ -n "${FIGURE:-}" ]; then  # its horizontal lines
            whole backbone "$pair" "$ratio" base_model
            whole fine_tuned "$pair" "$ratio" ftm_dir
        fi
        quantized bitdelta "$pair" bitdelta "$ratio"
        quantized dare_qt "$pair" dare_qt "$ratio" "bits=$(setting "$pair" dare_bits)"
        quantized deltacome "$pair" deltacome "$ratio"
        quantized impart_qt "$pair" impart_qt "$ratio"
    done
done
finish --table 7 ${FIGURE:+--figure "$OUT/$FIGURE.png" --figure "$OUT/$FIGURE.svg"}
