#!/usr/bin/env bash
# Beyond the paper: all methods at true ratios 8 to 128, in 16 bit and in codes, by held-out loss.
#
#   PAIR=tiny bash reproduce/beyond.sh                    the tiny pair; PAIR=tiny1: its second training seed; PAIR=small
#   BENCHMARK=tiny RATIOS=32 PAIR=tiny bash reproduce/beyond.sh      accuracy in the place of the loss
#   ROWS=reproduce/beyond_fixed.yaml RATIOS="32 64" MODELS=chat PAIR=small bash reproduce/beyond.sh
#
# The settings in ROWS (default reproduce/beyond.yaml) are tried at the ratio SEARCH (default 32) by the loss on validation
# items, mask seed 0; the best of each row and pair is then measured on test items at all RATIOS. A method that cannot reach
# a ratio leaves an empty cell. PAIR=tiny1 needs python assets/tiny/train.py --seed 1 --out assets/tiny/seed1
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start beyond "tiny/math tiny/code tiny/chat" "$@"
searched=$OUT/search
lines() { "$PYTHON" reproduce/beyond.py "$@" --pairs "$PAIRS" --rows "${ROWS:-reproduce/beyond.yaml}"; }
settings=$(lines search --ratios "${SEARCH:-32}")
[ -z "$settings" ] || plan --best --split validation --seeds 0 --out "$searched" <<< "$settings"
if dry_run; then exit; fi  # what follows depends on the results of the search
lines table --ratios "${RATIOS:-8 16 32 64 128}" --benchmark "${BENCHMARK:-loss}" --searched "$searched/beyond.cells.tsv" |
    plan --title "Beyond the paper${BENCHMARK:+: $BENCHMARK}" --figure
lines notes --ratios "${RATIOS:-8 16 32 64 128}" --searched "$searched/beyond.cells.tsv" --runs "$RUNS" | tee "$OUT/beyond_settings.md"
