#!/usr/bin/env bash
# Table 7: BitDelta, DARE-Qt, Delta-CoMe and ImPart-Qt by quantized ratio.
#
#   bash reproduce/table7.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table7.sh                    the tiny pair, in minutes on a CPU; PAIR=small: a real one
#   bash reproduce/table7.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start "${FIGURE:-table7}" "wizardmath_13b wizardcoder_13b llama2_chat_13b" "$@"
for pair in $PAIRS; do
    for ratio in $(of "$pair" ratios_qt); do
        echo "base $pair $ratio drawn"  # horizontal lines of the figure, and what the gain of a loss is measured by
        echo "finetuned $pair $ratio drawn"
        for row in bitdelta dare_qt deltacome impart_qt; do
            echo "quantized $row $pair $ratio"
        done
    done
done | plan --table 7 --first ${FIGURE:+--figure}
