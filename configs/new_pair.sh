#!/usr/bin/env bash
# A folder of configs/ for a model pair of your own: one short YAML, with which every script of reproduce/ runs.
#
#   bash configs/new_pair.sh BASE FT NAME [benchmarks]
#   bash configs/new_pair.sh mistralai/Mistral-7B-v0.1 meta-math/MetaMath-Mistral-7B metamath_7b "gsm8k math"
#   bash reproduce/table1.sh --pairs metamath_7b --dry-run
#
# BASE and FT are folders or hub ids. The sizes, which only --dry-run needs, are read from BASE's config.json where it can
# be had. Rows of a table (configs/rows/) can be changed for one pair by a YAML of the same name in its folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../requirements/environment.sh"

fail() { echo "error: $*" >&2; exit 2; }

[ $# -ge 3 ] && [ $# -le 4 ] || fail "usage: bash configs/new_pair.sh BASE FT NAME [benchmarks]"
base=$1 finetuned=$2 name=$3 benchmarks=${4:-gsm8k}
case $name in *[!a-zA-Z0-9_.-]* | "" | .*) fail "NAME '$name' may have letters, digits, _ . and - only: it is a folder's name" ;; esac
for benchmark in $benchmarks; do
    case $benchmark in
        tiny_math | tiny_code | tiny_chat) ;;
        *) [ -f "$ROOT/eval/scripts/$benchmark.sh" ] || fail "benchmark '$benchmark' is not one of eval/scripts/" ;;
    esac
done
folder=${CONFIGS:-$ROOT/configs}/$name
[ ! -e "$folder" ] || fail "$folder is there already; choose another NAME"
find_environment core
sizes=$(cd "$ROOT" && "$PYTHON" reproduce/model_size.py "$base" || true)
[ -n "$sizes" ] || echo "note: $base's config.json cannot be had now, so that --dry-run will not count this pair's costs" >&2

mkdir -p "$folder"
cat > "$folder/pair.yaml" <<YAML
# $finetuned over $base.
#   bash reproduce/table1.sh --pairs $name
name: $name
base_model: $base
ftm_dir: $finetuned
dtype: auto                 # of the evaluation: fp16, bf16, fp32, or the checkpoint's own
template: auto              # of AlpacaEval: llama2, llama3, mistral, openchat, or the tokenizer's own
benchmarks: $benchmarks       # the first is the one of Tables 3, 4, 5 and 7
preprune_ratio: 0.6         # beta; reproduce/grid_search.sh chooses it and C on held-out items
C: 1
ratio: 32
ratios: 8 16 32 64
ratio_qt: 32
ratios_qt: 16 32 64 128
dare_bits: 4                # of DARE-Qt: 2, 4 or 8
calibration: c4             # c4, wikitext2, or a .txt or .jsonl file
calibration_settings: nsamples=128 seqlen=2048
distillation_settings: nsamples=128 seqlen=128     # of BitDelta
$sizes
YAML
echo "$folder/pair.yaml"
echo "next: bash reproduce/table1.sh --pairs $name --dry-run"
