#!/usr/bin/env bash
# What compressing embedding and head costs and saves: each method with them whole, and compressed as all else is.
#
#   bash reproduce/embeddings.sh                       the small pair's models at 32; --dry-run says what that costs
#   bash reproduce/embeddings.sh --pairs "wizardmath_13b" --seeds "0"
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start embeddings "small" "$@"
for pair in $PAIRS; do
    echo "base $pair 32"
    echo "finetuned $pair 32"
    for row in dare:DARE lowrank:LowRank impart:ImPart; do
        echo "sparse ${row%:*} $pair 32"
        echo "sparse ${row%:*} $pair 32 weight_types=[linear,embeddings] as '${row#*:}, embeddings too'"
    done
done | plan --title "Embedding and head whole or compressed, at 32"
