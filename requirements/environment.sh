# Chooses the Python environment that a script runs in. Sourced, it offers two functions, which set $PYTHON:
#
#   find_environment KIND   the active environment (VIRTUAL_ENV, CONDA_PREFIX), else IMPART_VENV, else .venv at the top
#                           of the repository. Installs nothing: where packages are missing, or versions are outside
#                           the ranges, it ends with one error line, exit 2; with IMPART_INSTALL=skip, versions pass.
#   use_environment KIND    the same, but makes .venv where nothing is active, and installs the requirements into it. An
#                           active environment belongs to the user: it is installed into only with IMPART_INSTALL=yes.
#
# A third, help_if_asked "$@", prints the comment that the script begins with.
#
# KIND: core, full, or small (what makes the small pair: the core and a reader of its base model's format).
# Run as a script, it installs: bash requirements/environment.sh core|full|small
# The variables that it reads are listed in requirements/README.md.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

use_environment() {  # KIND
    choose_environment
    if [ "$ACTIVE" = yes ]; then
        is_stamped "$1" && return
        local shortcomings
        shortcomings=$(shortcomings_for "$1") || exit 2
        if [ -z "$shortcomings" ]; then return; fi
        [ "${IMPART_INSTALL:-no}" = yes ] || refuse_environment "$1" "$shortcomings"
    elif [ ! -x "$PYTHON" ]; then
        make_environment
    fi
    is_stamped "$1" || install_requirements "$1"
}

find_environment() {  # KIND
    choose_environment
    if [ ! -x "$PYTHON" ]; then
        echo "error: there is no Python environment in $ENVIRONMENT; make one with: $(installing_command "$1")" >&2
        exit 2
    fi
    is_stamped "$1" && return
    local shortcomings
    shortcomings=$(shortcomings_for "$1") || exit 2
    [ -z "$shortcomings" ] || refuse_environment "$1" "$shortcomings"
}

help_if_asked() {  # "$@": for -h or --help prints the comment that a script begins with, and ends
    case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
}

choose_environment() {  # sets ENVIRONMENT (its folder), PYTHON, and ACTIVE (yes: activated, and not made here)
    local stamp
    case ${IMPART_INSTALL:-no} in
        yes | no | skip) ;;
        *) echo "error: IMPART_INSTALL is yes, no or skip, not '$IMPART_INSTALL'" >&2; exit 2 ;;
    esac
    MAKER=${PYTHON:-python3}  # what makes .venv, should there be none
    ENVIRONMENT=${VIRTUAL_ENV:-${CONDA_PREFIX:-}} ACTIVE=yes
    if [ -z "$ENVIRONMENT" ]; then ENVIRONMENT=${IMPART_VENV:-$ROOT/.venv} ACTIVE=no; fi
    case $ENVIRONMENT in /*) ;; *) ENVIRONMENT=$PWD/$ENVIRONMENT ;; esac
    if [ "$ENVIRONMENT" -ef "${IMPART_VENV:-$ROOT/.venv}" ]; then
        for stamp in "$ENVIRONMENT"/.impart-requirements-*; do if [ -e "$stamp" ]; then ACTIVE=no; fi; done
    fi
    PYTHON=$ENVIRONMENT/bin/python
    if [ ! -x "$PYTHON" ] && [ -x "${PYTHON}3" ]; then PYTHON=${PYTHON}3; fi
    if [ "$ACTIVE" = yes ] && [ ! -x "$PYTHON" ]; then
        echo "error: the active environment $ENVIRONMENT has no bin/python; unset VIRTUAL_ENV and CONDA_PREFIX" >&2
        exit 2
    fi
}

make_environment() {
    "$MAKER" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "error: Python 3.11 or newer is needed, not $MAKER ($("$MAKER" --version 2>&1)); set PYTHON" >&2
        exit 2
    }
    echo "making an environment in $ENVIRONMENT" >&2
    "$MAKER" -m venv "$ENVIRONMENT" || exit 1
}

install_requirements() {  # KIND
    local file torch=requirements/torch.txt
    file=$(requirements_of "$1")
    # The core's range of torch is for environments and requirements files of the user's; all others get the one version.
    if [ "$ACTIVE" = yes ] && [ "$1" != full ] || [ -n "${IMPART_REQUIREMENTS:-}" ]; then torch=/dev/null; fi
    echo "installing $file into $ENVIRONMENT (once; a minute for the core, several for everything)" >&2
    (
        cd "$ROOT" || exit 1  # the paths in the requirements files are relative to here
        if [ -n "${IMPART_TORCH_INDEX:-}" ]; then
            "$PYTHON" -m pip install --quiet --index-url "$IMPART_TORCH_INDEX" -c "$torch" \
                "$(grep -h '^torch[<>=]' "$file" requirements-core.txt | head -n 1)" || exit 1
        fi
        "$PYTHON" -m pip install --quiet -c "$torch" -r "$file" || exit 1
        # Every process of vLLM finds the load format `impart` by the entry point of an installed suite.
        if "$PYTHON" -m pip show --quiet vllm 2>/dev/null; then
            "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation -e .
        fi
    ) || {
        echo "error: pip could not install $file into $ENVIRONMENT; its message is above" >&2
        exit 1
    }
    fingerprint_of "$file" > "$ENVIRONMENT/.impart-requirements-$1"
    [ "$ACTIVE" = yes ] || printf 'installed; for your own commands: source %q/bin/activate\n' "$ENVIRONMENT" >&2
}

refuse_environment() {  # KIND "what missing.py says"
    local instead=
    if [ "$ACTIVE" = yes ]; then instead="deactivate it to use one of the suite's own, "; fi
    case $2 in *"has "*) instead+="set IMPART_INSTALL=skip to go on with these versions, " ;; esac
    echo "error: the environment $ENVIRONMENT $2; ${instead:+${instead}or }install with: $(installing_command "$1")" >&2
    exit 2
}

installing_command() {  # KIND -> a command line that can be pasted
    local consent=
    if [ "$ACTIVE" = yes ]; then consent="IMPART_INSTALL=yes "; fi
    printf '%sbash %q %s' "$consent" "$ROOT/requirements/environment.sh" "$1"
}

shortcomings_for() {  # KIND -> "lacks a, b and has c 1.0 (>=1.1 is needed)", or nothing
    local versions=
    if [ "${IMPART_INSTALL:-no}" = skip ]; then versions=--any-version; fi
    (cd "$ROOT" && "$PYTHON" requirements/missing.py "$(requirements_of "$1")" $versions)
}

requirements_of() {  # KIND -> file
    if [ -n "${IMPART_REQUIREMENTS:-}" ]; then echo "$IMPART_REQUIREMENTS"
    elif [ "$1" = core ]; then echo requirements-core.txt
    elif [ "$1" = small ]; then echo requirements-small.txt
    elif nvidia-smi -L >/dev/null 2>&1; then echo requirements.txt
    else echo requirements-cpu.txt; fi
}

is_stamped() {  # KIND: a complete environment is recognised without starting Python; all have the core in them
    local kind stamp
    for kind in core full small; do
        if [ "$1" != core ] && [ "$1" != "$kind" ]; then continue; fi
        stamp=$ENVIRONMENT/.impart-requirements-$kind
        if [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint_of "$(requirements_of "$kind")")" ]; then return 0; fi
    done
    return 1
}

fingerprint_of() {  # requirements file -> one word for the state of all of them
    echo "$1 $(cat "$ROOT"/requirements*.txt "$ROOT"/requirements/*.txt | cksum | tr ' ' -)"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    case ${1:-} in
        core | full | small) use_environment "$1" ;;
        *) echo "error: which requirements? usage: bash requirements/environment.sh core|full|small" >&2; exit 2 ;;
    esac
    echo "$PYTHON"
fi
