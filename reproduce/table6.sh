#!/usr/bin/env bash
# Table 6: BitDelta, DARE-Qt, Delta-CoMe and ImPart-Qt at one quantized ratio.
#
#   bash reproduce/table6.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table6.sh                    the tiny pair, in minutes on a CPU; PAIR=small: a real one
#   bash reproduce/table6.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start table6 "wizardmath_13b wizardcoder_13b llama2_chat_13b llama2_chat_7b llama3_instruct_8b" "$@"
for pair in $PAIRS; do
    for row in bitdelta dare_qt deltacome impart_qt; do
        echo "quantized $row $pair"
    done
done | plan --table 6
