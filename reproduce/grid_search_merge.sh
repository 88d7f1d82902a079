#!/usr/bin/env bash
# Table 8's lambda, TIES' trim ratio and the masks' sparsities, chosen on validation items by the average of the skills:
# edit the loops, or set MASKS, LAMBDAS, TRIMS and SPARSITIES.
#
#   MASKS=none PAIR=tiny bash reproduce/grid_search_merge.sh     lambda and trim first; the best go into pair.yaml
#   PAIR=tiny bash reproduce/grid_search_merge.sh                then the sparsities, at pair.yaml's lambda and trim
#   VALIDATION=held_out/ bash reproduce/grid_search_merge.sh     the 13B models
#
# VALIDATION: a folder with one held-out file per benchmark, named as the benchmark's own (gsm8k_test.jsonl, ...: what
# eval/<benchmark>.py --data reads). Each point is one merge and one evaluation, the merged model is removed again, points
# that are done are skipped. The paper's grid; its retain ratios 0.8, 0.6, 0.4 are the trim ratios 0.2, 0.4, 0.6.
MODELS=merging SEEDS=${SEEDS:-0}
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start grid_search_merge merging_13b "$@"
for pair in $PAIRS; do
    is_shipped "$pair" || [ -d "${VALIDATION:-}" ] || fail "VALIDATION=${VALIDATION:-} is no folder: set it to one with the held-out items on which settings are chosen"
done
for pair in $PAIRS; do
    for mask in ${MASKS:-none dare impart}; do
        if [ "$mask" = none ]; then
            for lambda in ${LAMBDAS:-0.4 0.6 0.8 1.0 1.2}; do
                echo "merged 'ta: lambda $lambda' $pair ta_$lambda none"
                for trim in ${TRIMS:-0.2 0.4 0.6}; do
                    echo "merged 'ties: trim $trim, lambda $lambda' $pair ties_${trim}_$lambda none"
                done
            done
            continue
        fi
        for method in ta ties; do
            for sparsity in ${SPARSITIES:-0.1 0.3 0.5 0.7 0.9}; do
                echo "merged '${method}_$mask: sparsity $sparsity' $pair $method $mask $sparsity"
            done
        done
    done
done | plan --best --split validation ${VALIDATION:+--held_out "$VALIDATION"}
