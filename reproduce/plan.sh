# Sourced by the scripts of this folder, which then only say what a table consists of:
#
#   start NAME "pairs" "$@"       reads flags and the environment; sets PAIRS, and FLAGS of plan.py
#   of PAIR KEY                   what the pair's file says: of tiny/code ratios -> 8 16 32
#   echo "sparse impart $pair"    names one thing to have (reproduce/things.py has every kind) ...
#   ... | plan --table 1          and plan.py makes what is missing and prints the table
#
#   PAIR, --pairs "..."   pairs (folders of configs/); `tiny`, `tiny1`, `small` stand for those pairs' three models
#   SEEDS, --seeds "..."  seeds of the masks (default 0 1 2)
#   JOBS, --jobs N        steps at a time (default: one per GPU; without one 1, for the tiny pair one per core)
#   LAUNCH                prefix of every step, such as LAUNCH="srun --gpus=1 -n1" JOBS=16 for Slurm
#   --dry-run             print commands and expected cost, check models, data and keys; touch and install nothing
#   --keep                keep merged models after their evaluation
#   RUNS                  folder of deltas and results (default runs); nothing that is there is made again
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../requirements/environment.sh"
cd "$ROOT"

fail() { echo "error: $*" >&2; exit 2; }

start() {  # name "default pairs" arguments...
    local name=$1 default=$2 pair dry=no
    shift 2
    PAIR=${PAIR:-$default} RUNS=${RUNS:-runs}
    FLAGS=(--name "$name" --runs "$RUNS")
    while [ $# -gt 0 ]; do
        case $1 in
            --dry-run) dry=yes FLAGS+=(--dry-run) ;;
            --keep) FLAGS+=(--keep) ;;
            --pairs | --seeds | --jobs)
                [ $# -ge 2 ] || fail "$1 needs a value"
                case $1 in --pairs) PAIR=$2 ;; --seeds) SEEDS=$2 ;; --jobs) JOBS=$2 ;; esac
                shift ;;
            -h | --help)
                sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
                sed -n '/^#   PAIR/,/^[^#]/s/^# \{0,1\}//p' reproduce/plan.sh
                exit 0 ;;
            *) fail "unknown argument '$1'; known: --pairs --seeds --jobs --dry-run --keep" ;;
        esac
        shift
    done
    if [ "${KEEP:-no}" = yes ]; then FLAGS+=(--keep); fi
    if [ -n "${JOBS:-}" ]; then FLAGS+=(--jobs "$JOBS"); fi
    PAIRS=" $PAIR "
    PAIRS=${PAIRS// tiny /$(models_of tiny)}
    PAIRS=${PAIRS// tiny1 /$(models_of tiny1)}
    PAIRS=${PAIRS// small /$(models_of smollm2)}
    OUT=$RUNS/tables/$([ "$PAIR" = "$default" ] && echo paper || echo "${PAIR// /+}" | tr / -)
    FLAGS+=(--pairs "$PAIRS" --seeds "${SEEDS:-0 1 2}" --out "$OUT")
    for pair in $PAIRS; do
        [ -f "configs/$pair/pair.yaml" ] || fail "there is no configs/$pair/pair.yaml; configs/new_pair.sh makes one"
    done
    if [ "$dry" = yes ]; then find_environment core; else use_environment "$(environment_kind)"; fi
    FLAGS+=(--python "$PYTHON")
}

models_of() {  # folder of configs/ -> " folder/math folder/code folder/chat "; MODELS names others
    local model
    for model in ${MODELS:-math code chat}; do printf ' %s/%s ' "$1" "$model"; done
}

is_shipped() {  # pair: whether this repository makes its models and its held-out items
    case $1 in tiny/* | tiny1/* | smollm2/*) ;; *) return 1 ;; esac
}

environment_kind() {  # their evaluations do without vLLM and the harnesses
    local pair
    for pair in $PAIRS; do
        is_shipped "$pair" || { echo full; return; }
    done
    echo core
}

dry_run() {  # whether nothing is to be run
    case " ${FLAGS[*]} " in *" --dry-run "*) ;; *) return 1 ;; esac
}

of() { "$PYTHON" reproduce/setting.py "$@"; }  # pair key... -> a line each, the parts of a list with spaces between them

plan() {  # flags of plan.py; the table's lines on stdin
    "$PYTHON" reproduce/plan.py "${FLAGS[@]}" "$@"
}
