#!/usr/bin/env bash
# ImPart beside DARE and LowRank on the tiny trained pair, end to end: delta -> sparsify -> base + delta -> accuracy.
#
#   bash reproduce/quickstart.sh            the chat model at compression ratios 4, 8, 16, three seeds
#   bash reproduce/quickstart.sh code       another of its models: math, code or chat
#   RATIOS="8 16" SEEDS="0 1 2 3 4" bash reproduce/quickstart.sh
#
# Writes tiny/<model>/ in RUNS (here by default runs/quickstart): the deltas, results_test/, accuracy.csv and accuracy.png.
# What is there is not made again.
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
skill=chat
case ${1:-} in
    math | code | chat) skill=$1; shift ;;
    "" | -*) ;;
    *) fail "the tiny pair has the models math, code and chat, not '$1'" ;;
esac
case " $* " in *" --pairs "*) fail "the quickstart has the tiny pair only; any other: bash reproduce/table1.sh --pairs NAME" ;; esac
PAIR=tiny/$skill RUNS=${RUNS:-runs/quickstart}
start quickstart "" "$@"
out=$RUNS/$PAIR listed=$(mktemp)
trap 'rm -f "$listed"' EXIT
{
    echo "base $PAIR"
    echo "finetuned $PAIR"
    for ratio in ${RATIOS:-$(of "$PAIR" ratios)}; do
        for row in dare lowrank impart; do echo "sparse $row $PAIR $ratio"; done
    done
} | plan --title quickstart > "$listed"
case " $* " in *" --dry-run "*) cat "$listed"; exit ;; esac
echo
echo "The tiny pair's $skill model (1.5 million parameters; these are not the paper's numbers):"
echo
"$PYTHON" eval/tables.py "$out/results_test" --figure "$out/accuracy.png" --csv "$out/accuracy.csv"
echo
echo "figure: $out/accuracy.png   numbers: $out/accuracy.csv   deltas: $out/*_cr*"
[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || printf 'for your own commands: source %q/bin/activate\n' "$ENVIRONMENT"
