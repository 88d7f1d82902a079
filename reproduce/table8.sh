#!/usr/bin/env bash
# Table 8: math, code and chat models merged by task arithmetic and TIES, with DARE or ImPart before it or not.
#
#   bash reproduce/table8.sh                        the 13B models; configs/llamacoder_13b trains the code model
#   PAIR=tiny bash reproduce/table8.sh              the tiny pair's three models
# Models, lambda, trim ratio and sparsities: configs/merging_13b/ and configs/tiny/merging/.
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"
TINY=tiny/merging
start table8 merging_13b "$@"
for pair in $PAIRS; do
    read -r math code chat <<< "$(setting "$pair" benchmarks)"
    models=configs/$pair/merge.yaml
    cell single "$pair" "" "$(value_of "$models" math_pth)" "$math"
    cell single "$pair" "" "$(value_of "$models" code_pth)" "$code"
    cell single "$pair" "" "$(value_of "$models" chat_pth)" "$chat"
    for method in ta ties; do
        merged $method "$pair" "$(setting "$pair" $method)" none
        for mask in dare impart; do
            merged ${method}_$mask "$pair" "$(setting "$pair" $method)" $mask "$(setting "$pair" ${method}_${mask}_sparsity)"
        done
    done
done
finish --table 8
