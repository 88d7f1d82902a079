#!/usr/bin/env bash
# ImPart beside DARE and LowRank on the tiny trained pair, end to end: delta -> sparsify -> reconstruct -> accuracy.
#
#   bash reproduce/quickstart.sh            the chat model at compression ratios 4, 8, 16, three seeds
#   bash reproduce/quickstart.sh code       another of its models: math, code or chat
#   RATIOS="8 16" SEEDS="0 1 2 3 4" bash reproduce/quickstart.sh
#
# Writes runs/quickstart/<model>/: the deltas, results/, accuracy.csv and accuracy.png. What is there is not made again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../requirements/environment.sh"
cd "$ROOT"
skill=${1:-chat}
case $skill in
    code) ratios=${RATIOS:-8 16 32} ;;
    math | chat) ratios=${RATIOS:-4 8 16} ;;
    *) echo "error: the tiny pair has the models math, code and chat, not '$skill'" >&2; exit 2 ;;
esac
seeds=${SEEDS:-0 1 2}
use_environment core
out=runs/quickstart/$skill
mkdir -p "$out"

if [ ! -f "$out/svd/delta.json" ]; then
    "$PYTHON" delta.py --svd --base_model assets/tiny/base --finetuned_model "assets/tiny/$skill" --save_path "$out/svd"
fi
deltas=()
sparsify() {  # method ratio seed; two at a time, since most of it is the start of Python
    local folder=$out/$1_cr$2_seed$3
    deltas+=("$folder")
    if [ -f "$folder/delta.json" ]; then return; fi
    if [ "$(jobs -rp | wc -l)" -ge 2 ]; then wait -n; fi
    "$PYTHON" sparsify/sparsify.py --config configs/rows/impart.yaml --config "configs/tiny/$skill/pair.yaml" --threads 1 svd_dir="$out/svd" save_dir="$folder" \
        log_dir="$out/logs" method="$1" compression_ratio="$2" seed="$3" &
}
for ratio in $ratios; do
    sparsify lowrank "$ratio" 0  # nothing random in it
    for seed in $seeds; do
        sparsify dare "$ratio" "$seed"
        sparsify impart "$ratio" "$seed"
    done
done
for job in $(jobs -p); do wait "$job"; done

# Each delta is added back to the base (base + delta) and answers the skill's held-out questions.
"$PYTHON" eval/tiny.py assets/tiny/base "assets/tiny/$skill" "${deltas[@]}" --tasks "$skill" --backend hf \
    --results_dir "$out/results"
echo
echo "The tiny pair's $skill model (1.5 million parameters; these are not the paper's numbers):"
echo
"$PYTHON" eval/tables.py "$out/results" --figure "$out/accuracy.png" --csv "$out/accuracy.csv"
echo
echo "figure: $out/accuracy.png   numbers: $out/accuracy.csv   deltas: $out/*_cr*_seed*"
echo "next, on a pretrained model of 135 million parameters: bash reproduce/small_pair.sh && PAIR=small bash reproduce/table1.sh"
