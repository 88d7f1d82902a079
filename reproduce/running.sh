# Sourced by steps.sh: runs what it planned, on folders that no other script is at work in and that no other settings made.

hold_pairs() {  # locks the folder of every pair until this script and its steps have ended; killed ones take a moment to
    local pair lock
    for pair in $PAIRS; do
        mkdir -p "$RUNS/$pair"
        exec {lock}>> "$RUNS/$pair/.lock"
        flock --timeout 5 "$lock" || fail "another script is at work in $RUNS/$pair; wait for it, or set RUNS to another folder"
        rm -rf "$RUNS/$pair"/cache/step-*  # models that killed steps left
    done
}

check_made_by() {  # nothing that other settings made is taken for this table's
    local key file pair name change
    for key in ${MADE_BY[@]+"${!MADE_BY[@]}"}; do
        pair=${key%/*} name=${key##*/}
        file=$RUNS/$pair/.made_by/$name
        if [ -f "$file" ] && [ "$(cat "$file")" = "${MADE_BY[$key]}" ]; then continue; fi
        if [ -f "$file" ] && { [ -e "$RUNS/$pair/$name" ] || compgen -G "$RUNS/$pair/results_*/$name" > /dev/null; }; then
            change=$(diff <(tr ' ' '\n' < "$file") <(tr ' ' '\n' <<< "${MADE_BY[$key]}") | grep '^[<>]' | head -n 2 | tr '\n' ' ' || true)
            fail "$RUNS/$pair/$name and its results ($RUNS/$pair/results_*/$name) were made with other settings (${change% }); remove" \
                "them, or set RUNS to another folder"
        fi
        [ "$DRY" = yes ] || { mkdir -p "${file%/*}" && printf '%s\n' "${MADE_BY[$key]}" > "$file"; }
    done
}

run_step() {  # one line of STEPS, in a process of its own, on the GPU of its slot
    local stage pair detail command log=$RUNS/logs/step-$$.log started=$SECONDS own
    IFS=$'\t' read -r stage pair detail command <<< "$1"
    if [ "$GPUS" -gt 0 ]; then export CUDA_VISIBLE_DEVICES=$((SLOT % GPUS)); fi
    if [ "$THREADS" = 1 ]; then export OMP_NUM_THREADS=1; fi
    own=$RUNS/$pair/cache/$([ "$KEEP" = yes ] && echo kept || echo "step-$$")
    mkdir -p "$RUNS/logs" "$own"
    export IMPART_CACHE=$(cd "$own" && pwd)  # where evaluation rebuilds dense models
    if ! bash -c "$command" > "$log" 2>&1; then
        { echo "error: this step failed; its last lines, of $log:"; tail -n 15 "$log"; echo "command: $command"; } >&2
        exit 255  # xargs then starts no more steps
    fi
    if [ "$KEEP" = no ]; then rm -rf "$own"; fi
    rm -f "$log"
    echo "$stage $pair ($detail): $((SECONDS - started)) s"
}

run_stage() {  # stage: all of its steps, JOBS at a time
    local line lines=()
    for line in ${STEPS[@]+"${STEPS[@]}"}; do
        if [ "${line%%"$TAB"*}" = "$1" ]; then lines+=("$line"); fi
    done
    [ ${#lines[@]} -gt 0 ] || return 0
    echo "== $1: ${#lines[@]} steps, $JOBS at a time" >&2
    printf '%s\0' "${lines[@]}" |
        xargs -0 -n 1 -P "$JOBS" --process-slot-var=SLOT bash -c 'set -euo pipefail; run_step "$1"' run_step >&2 ||
        { echo "stopped; the same command continues" >&2; exit 1; }
}
