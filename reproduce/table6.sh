#!/usr/bin/env bash
# Table 6: BitDelta, DARE-Qt, Delta-CoMe and ImPart-Qt at one quantized ratio.
#
#   bash reproduce/table6.sh                              every pair of the table; --dry-run says what that costs
#   PAIR=tiny bash reproduce/table6.sh                    the tiny pair's three models, in minutes on a CPU
#   bash reproduce/table6.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
start table6 "wizardmath_13b wizardcoder_13b llama2_chat_13b llama2_chat_7b llama3_instruct_8b" "$@"
for pair in $PAIRS; do
    ratio=$(setting "$pair" ratio_qt)
    quantized bitdelta "$pair" bitdelta "$ratio"
    quantized dare_qt "$pair" dare_qt "$ratio" "bits=$(setting "$pair" dare_bits)"
    quantized deltacome "$pair" deltacome "$ratio"
    quantized impart_qt "$pair" impart_qt "$ratio"
done
finish --table 6
