#!/usr/bin/env bash
# Table 8: math, code and chat models merged by task arithmetic and TIES, with DARE or ImPart before it or not.
#
#   bash reproduce/table8.sh                        the 13B models; configs/llamacoder_13b trains the code model
#   PAIR=tiny bash reproduce/table8.sh              the tiny pair's three models; PAIR=small the small pair's
# Models, lambda, trim ratio and sparsities: configs/merging_13b/pair.yaml, configs/tiny/merging/pair.yaml, configs/smollm2/merging/pair.yaml.
MODELS=merging
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start table8 merging_13b "$@"
for pair in $PAIRS; do
    echo "single $pair"
    for method in ta ties; do
        echo "merged $method $pair $method none"
        for mask in dare impart; do
            echo "merged ${method}_$mask $pair $method $mask"
        done
    done
done | plan --table 8
