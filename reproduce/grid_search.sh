#!/usr/bin/env bash
# beta and C (and DARE-Qt's bits) chosen on validation items: edit the loops, or set BETAS, CS and RATIOS.
#
#   PAIR=tiny bash reproduce/grid_search.sh
#   VALIDATION=svamp.jsonl bash reproduce/grid_search.sh --pairs wizardmath_13b
#   BETAS="0.6 0.7" CS="1" RATIOS="16 32" VALIDATION=held_out.jsonl bash reproduce/grid_search.sh --pairs wizardcoder_13b
#
# VALIDATION: a held-out file in the format of the pair's first benchmark (eval/<benchmark>.py --help). SVAMP, the paper's
# for math, becomes GSM8K's by reproduce/svamp.py. The SVD is computed once; each point is one sparsification and one
# evaluation on a GPU of its own, points that are done are skipped, and the best is printed with its interval.
SEEDS=${SEEDS:-0}
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start grid_search wizardmath_13b "$@"
for pair in $PAIRS; do
    is_shipped "$pair" || [ -f "${VALIDATION:-}" ] || fail "VALIDATION=${VALIDATION:-} is no file: set it to the held-out items on which settings are chosen"
done
for pair in $PAIRS; do
    for ratio in ${RATIOS:-$(of "$pair" compression_ratio)}; do
        for beta in ${BETAS:-0.6 0.7 0.8}; do
            for C in ${CS:-0.5 1}; do
                echo "sparse impart $pair $ratio preprune_ratio=$beta C=$C as 'beta $beta C $C'"
            done
        done
    done
done | plan --best --first --figure --split validation ${VALIDATION:+--held_out "$VALIDATION"}
