# Sourced by the scripts of this folder: plans the steps of a table (delta -> sparsify / quantize / merge -> evaluate),
# runs those whose result is missing, and prints the table.
#
#   start NAME "pairs" "$@"    reads flags and the environment; every script begins with it
#   whole, sparse, quantized, merged    plan a cell of the table and the steps that fill it
#   finish FLAGS...            runs the plan (or prints it: --dry-run) and hands the cells to eval/tables.py
#
#   PAIR, --pairs "..."   pairs (folders of configs/); `tiny` stands for the tiny pair's three models
#   SEEDS, --seeds "..."  seeds of the masks (default 0 1 2)
#   JOBS, --jobs N        steps at a time (default: one per GPU; without one 1, for the tiny pair one per core)
#   --dry-run             print commands and expected cost, check models, data and keys, run nothing
#   --keep                keep rebuilt and merged dense models after their evaluation
#   RUNS                  folder of deltas and results (default runs); nothing that is there is made again
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../requirements/environment.sh"
cd "$ROOT"
source reproduce/running.sh

STEPS=()             # stage, pair, detail and command of every missing step, separated by tabs
CELLS=()             # row, pair, benchmark, ratio, result file
MODELS=()            # models to evaluate, in order: pair and path separated by a tab
declare -A SEEN=()        # targets that are planned
declare -A BENCHMARKS=()  # of a model to evaluate: those whose result is missing
declare -A MERGE=()       # command that makes a model which is removed after its evaluation
declare -A MADE_BY=()     # of everything planned, there or not: the commands and settings behind it
TAB=$'\t'
STAGES='svd sparsify quantize evaluate merge'

start() {  # name "default pairs" arguments...
    NAME=$1
    local default=$2 pair
    shift 2
    PAIR=${PAIR:-$default} SEEDS=${SEEDS:-0 1 2} RUNS=${RUNS:-runs} SPLIT=${SPLIT:-test} DRY=no KEEP=${KEEP:-no} JOBS=${JOBS:-}
    while [ $# -gt 0 ]; do
        case $1 in
            --dry-run) DRY=yes ;;
            --keep) KEEP=yes ;;
            --pairs | --seeds | --jobs)
                [ $# -ge 2 ] || fail "$1 needs a value"
                case $1 in --pairs) PAIR=$2 ;; --seeds) SEEDS=$2 ;; --jobs) JOBS=$2 ;; esac
                shift ;;
            -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
            *) fail "unknown argument '$1'; known: --pairs --seeds --jobs --dry-run --keep" ;;
        esac
        shift
    done
    OUT=$RUNS/tables/$([ "$PAIR" = "$default" ] && echo paper || echo "${PAIR// /+}" | tr / -)
    PAIRS=" $PAIR "
    PAIRS=${PAIRS// tiny / ${TINY:-tiny/math tiny/code tiny/chat} }
    for pair in $PAIRS; do
        [ -f "configs/$pair/pair.yaml" ] || fail "there is no configs/$pair/pair.yaml; configs/new_pair.sh makes one"
    done
    GPUS=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true)
    THREADS=0  # all
    case $PAIRS in *" tiny/"*) JOBS=${JOBS:-$([ "$GPUS" -gt 0 ] && echo "$GPUS" || (unset OMP_NUM_THREADS; nproc))} THREADS=1 ;; esac
    JOBS=${JOBS:-$([ "$GPUS" -gt 0 ] && echo "$GPUS" || echo 1)}
    [ "$DRY" = yes ] || hold_pairs
    if [ "$DRY" = yes ]; then find_environment core; else use_environment "$(environment_kind)"; fi
}

environment_kind() {  # the tiny pair does without vLLM and the harnesses
    local pair
    for pair in $PAIRS; do
        case $pair in tiny/*) ;; *) echo full; return ;; esac
    done
    echo core
}

fail() { echo "error: $*" >&2; exit 2; }

value_of() {  # file key -> its value, without a comment
    sed -n "s/^$2: *//p" "$1" | sed 's/ *#.*$//'
}

setting() { value_of "configs/$1/pair.yaml" "$2"; }  # pair key

row_settings() {  # pair row -> arguments: the row's YAML of the pair, else the row's own with the pair's settings
    local own=configs/$1/$2.yaml row=configs/rows/$2.yaml key
    if [ -f "$own" ]; then
        echo "--config $own"
        return
    fi
    echo "--config $row base_model=$(setting "$1" base_model) ftm_dir=$(setting "$1" ftm_dir)"
}

chosen() {  # pair row [key=value ...] -> beta and C, given or the pair's, where the row is one of theirs; then the rest
    local row=configs/rows/$2.yaml own=configs/$1/$2.yaml key given
    for key in preprune_ratio C; do
        given=$(printf '%s\n' "${@:3}" | sed -n "s/^$key=//p")
        if [ -z "$given" ] && grep -q '^method: impart' "$row" && ! grep -q "^$key:" "$row"; then
            given=$([ -f "$own" ] && value_of "$own" $key || setting "$1" $key)
        fi
        if [ -n "$given" ]; then echo "$key=$given"; fi
    done
    printf '%s\n' "${@:3}" | sed '/^preprune_ratio=/d; /^C=/d'
}

name_of() {  # key=value ... -> the part of a delta's name that tells them: _beta0.8_C0.5
    printf '_%s' "$@" | sed 's/preprune_ratio/beta/g; s/=//g; s/^_$//'
}

made_by() {  # pair name words...: how the delta, model or results of this name come about, with the YAML files in the words
    local text="${*:3}" file
    for file in $(grep -o 'configs/[^ ]*\.yaml' <<< "$text" || true); do
        text+=" $(sed 's/ *#.*$//' "$file" | tr -s '\n ' ' ')"
    done
    text=${text//"$RUNS"/RUNS}
    MADE_BY[$1/$2]=${text//"$PYTHON"/python}
}

step() {  # stage pair detail target command...: plans the command unless its target is there or planned
    local stage=$1 pair=$2 detail=$3 target=$4
    shift 4
    if [ -e "$target" ] || [ -n "${SEEN[$target]:-}" ]; then return 0; fi
    SEEN[$target]=yes
    STEPS+=("$stage$TAB$pair$TAB$detail$TAB$*")
}

svd_of() {  # pair: the SVD of its delta, once for all rows
    local command="$PYTHON delta.py --svd --base_model $(setting "$1" base_model) --finetuned_model $(setting "$1" ftm_dir)"
    command+=" --save_path $RUNS/$1/svd --threads $THREADS"
    made_by "$1" svd "$command"
    step svd "$1" svd "$RUNS/$1/svd/delta.json" "$command"
}

benchmarks_of() {  # pair -> its benchmarks, or the first of them in tables that have one for each pair
    local all
    all=$(setting "$1" benchmarks)
    if [ "${ONE_BENCHMARK:-no}" = yes ]; then echo "${all%% *}"; else echo "$all"; fi
}

cell() {  # row pair ratio model benchmarks...: cells of the table, and the evaluation that fills them
    local row=$1 pair=$2 ratio=$3 model=$4 benchmark result
    local key=$pair$TAB$model
    made_by "$pair" "results_$SPLIT" "dtype=$(setting "$pair" dtype) template=$(setting "$pair" template) items=${VALIDATION:-}"
    for benchmark in "${@:5}"; do
        result=$RUNS/$pair/results_$SPLIT/$(basename "$model")/$benchmark/0.json
        CELLS+=("$row$TAB$pair$TAB$benchmark$TAB$ratio$TAB$result")
        [ ! -e "$result" ] && [ ! -e "${result/alpacaeval/alpacaeval_plain}" ] && [ -z "${SEEN[$result]:-}" ] || continue
        SEEN[$result]=yes
        [ -n "${BENCHMARKS[$key]:-}" ] || MODELS+=("$key")
        BENCHMARKS[$key]="${BENCHMARKS[$key]:-} $benchmark"
    done
}

whole() {  # row pair ratio base_model|ftm_dir: a checkpoint as it is
    local model
    model=$(setting "$2" "$4")
    made_by "$2" "$(basename "$model")" "$model"
    cell "$1" "$2" "$3" "$model" $(benchmarks_of "$2")
}

sparse() {  # row pair config-row ratio [key=value ...]: a sparse delta per seed
    local row=$1 pair=$2 config=$3 ratio=$4 seeds=$SEEDS seed settings folder svd command
    settings=$(chosen "$pair" "$config" "${@:5}")
    if [ "$config" = lowrank ]; then seeds=${SEEDS%% *}; fi  # nothing random in it
    for seed in $seeds; do
        folder=$RUNS/$pair/${config}_cr$ratio$(name_of $settings)_seed$seed
        svd=
        if [ "$config" != dare ]; then svd_of "$pair"; svd=svd_dir=$RUNS/$pair/svd; fi
        command="$PYTHON sparsify/sparsify.py $(row_settings "$pair" "$config") $settings"
        command+=" $svd compression_ratio=$ratio seed=$seed save_dir=$folder log_dir=$RUNS/$pair/logs --threads $THREADS"
        made_by "$pair" "${folder##*/}" $command "${svd:+${MADE_BY[$pair/svd]}}"
        step sparsify "$pair" "$ratio" "$folder/delta.json" $command
        cell "$row" "$pair" "$ratio" "$folder" $(benchmarks_of "$pair")
    done
}

quantized() {  # row pair config-row ratio [key=value ...]: a quantized delta per seed
    local row=$1 pair=$2 config=$3 ratio=$4 seeds=$SEEDS seed folder settings svd sparsify quantize
    settings=$(chosen "$pair" "$config" "${@:5}")
    if [ "$config" = deltacome ] || { [ "$config" = bitdelta ] && [ "$ratio" -le 16 ]; }; then seeds=${SEEDS%% *}; fi
    for seed in $seeds; do
        folder=$RUNS/$pair/${config}_qt$ratio$(name_of $settings)_seed$seed
        sparsify= svd=
        quantize="$PYTHON quantize/sparse_llama.py $(setting "$pair" ftm_dir) $(setting "$pair" calibration)"
        quantize+=" --save_compressed_delta_dir $folder --threads $THREADS"
        if [ "$config" = bitdelta ]; then
            quantize+=" --config configs/rows/bitdelta.yaml baseModel=$(setting "$pair" base_model) compression_ratio_qt=$ratio"
            quantize+=" seed=$seed $(setting "$pair" distillation_settings)"
        else
            if [ "$config" != dare_qt ]; then svd_of "$pair"; svd=svd_dir=$RUNS/$pair/svd; fi
            sparsify="$PYTHON sparsify/sparsify_quant.py $(row_settings "$pair" "$config") $settings"
            sparsify+=" $svd compression_ratio_qt=$ratio seed=$seed save_dir=$folder.sparse --threads $THREADS"
            if [ ! -e "$folder/delta.json" ]; then
                step sparsify "$pair" "$ratio" "$folder.sparse/delta.json" $sparsify
            fi
            quantize+=" --saved_delta_path $folder.sparse $(setting "$pair" calibration_settings) && rm -rf $folder.sparse"
        fi
        made_by "$pair" "${folder##*/}" $quantize $sparsify "${svd:+${MADE_BY[$pair/svd]}}"
        step quantize "$pair" "$ratio" "$folder/delta.json" $quantize
        cell "$row" "$pair" "$ratio" "$folder" $(benchmarks_of "$pair")
    done
}

merged() {  # row pair method mask [sparsity]: a merged model per seed, removed again after its evaluation
    local row=$1 pair=$2 method=$3 mask=$4 sparsity=${5:-} seeds=$SEEDS seed folder command
    if [ "$mask" = none ]; then seeds=${SEEDS%% *}; fi
    for seed in $seeds; do
        folder=$RUNS/$pair/${method}_$mask${sparsity:+_$sparsity}_seed$seed
        command="$PYTHON merge/merge.py --config configs/$pair/merge.yaml merge_method=$method mask=$mask"
        command+=" ${sparsity:+sparsity=$sparsity} seed=$seed save_pth=$folder --threads $THREADS"
        made_by "$pair" "${folder##*/}" $command
        MERGE[$pair$TAB$folder]=$command
        cell "$row" "$pair" "" "$folder" $(setting "$pair" benchmarks)
    done
}

evaluation() {  # pair "models" benchmarks... -> a command
    local pair=$1 models=$2 benchmark dtype flags commands=() joined
    shift 2
    dtype=$(setting "$pair" dtype)
    flags="--results_dir $RUNS/$pair/results_$SPLIT"
    if [[ $1 == tiny_* ]]; then
        echo "$PYTHON eval/tiny.py $models --tasks $(echo "${*#tiny_}" | tr ' ' ,) --backend hf --split $SPLIT $flags"
        return
    fi
    if [ "$SPLIT" = validation ]; then flags+=" --data $VALIDATION"; fi
    for benchmark in "$@"; do
        case $benchmark in
            alpacaeval) commands+=("bash eval/scripts/alpacaeval.sh $models $(setting "$pair" template) --dtype $dtype $flags") ;;
            *) commands+=("bash eval/scripts/$benchmark.sh $models $dtype $flags") ;;
        esac
    done
    joined=$(printf ' && %s' "${commands[@]}")
    echo "${joined# && }"
}

plan_evaluations() {  # the models to evaluate -> steps; the tiny pair's go into few processes, which start slowly
    local key pair model tasks group index
    local -A groups=() counts=()
    for key in ${MODELS[@]+"${MODELS[@]}"}; do
        pair=${key%%"$TAB"*} model=${key#*"$TAB"} tasks=${BENCHMARKS[$key]# }
        if [ -n "${MERGE[$key]:-}" ]; then
            local remove=" && rm -rf $model"
            [ "$KEEP" = no ] || remove=
            STEPS+=("merge$TAB$pair$TAB$tasks$TAB{ [ -d $model ] || ${MERGE[$key]}; } && $(evaluation "$pair" "$model" $tasks)$remove")
        elif [[ $tasks == tiny_* ]]; then
            index=${counts[$pair $tasks]:-0} counts[$pair $tasks]=$((${counts[$pair $tasks]:-0} + 1))
            group=$pair$TAB$tasks$TAB$((index % JOBS))
            groups[$group]="${groups[$group]:-} $model"
        else
            STEPS+=("evaluate$TAB$pair$TAB$tasks$TAB$(evaluation "$pair" "$model" $tasks)")
        fi
    done
    for group in "${!groups[@]}"; do
        IFS=$TAB read -r pair tasks index <<< "$group"
        STEPS+=("evaluate$TAB$pair$TAB$tasks$TAB$(evaluation "$pair" "${groups[$group]# }" $tasks)")
    done
}

finish() {  # flags of eval/tables.py
    local stage line cells=$OUT/$NAME.cells.tsv
    check_made_by
    plan_evaluations
    if [ "$DRY" = yes ]; then
        for stage in $STAGES; do
            for line in ${STEPS[@]+"${STEPS[@]}"}; do
                if [ "${line%%"$TAB"*}" = "$stage" ]; then echo "${line##*"$TAB"}"; fi
            done
        done
        echo "$PYTHON eval/tables.py --cells $cells --out $OUT $*"
    fi
    printf '%s\n' ${STEPS[@]+"${STEPS[@]}"} |
        "$PYTHON" reproduce/costs.py --pairs "$PAIRS" --jobs "$JOBS" --gpus "$GPUS" $([ "$DRY" = yes ] || echo --quiet)
    if [ "$DRY" = yes ]; then return; fi
    mkdir -p "$OUT"
    printf '%s\n' "${CELLS[@]}" > "$cells"
    export GPUS THREADS RUNS KEEP
    export -f run_step
    for stage in $STAGES; do run_stage "$stage"; done
    "$PYTHON" eval/tables.py --cells "$cells" --out "$OUT" "$@"
}
