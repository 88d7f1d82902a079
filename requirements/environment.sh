# Chooses the Python environment that a script runs in. Sourced, it offers two functions, which set $PYTHON:
#
#   find_environment KIND   the active environment (VIRTUAL_ENV, CONDA_PREFIX), else IMPART_VENV, else .venv at the top
#                           of the repository. Installs nothing: where packages are missing it ends with one error
#                           line, exit 2.
#   use_environment KIND    the same, but makes .venv where nothing is active, and installs the requirements into it. An
#                           active environment belongs to the user: it is installed into only with IMPART_INSTALL=yes.
#
# KIND: core, full, or small (what makes the small pair: the core and a reader of its base model's format).
# Run as a script, it installs: bash requirements/environment.sh core|full|small
# The variables that it reads are listed in requirements/README.md.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

use_environment() {  # KIND
    choose_environment
    if [ "$ACTIVE" = yes ]; then
        is_stamped "$1" && return
        local missing
        missing=$(missing_packages "$1") || exit 2
        if [ -z "$missing" ]; then return; fi
        [ "${IMPART_INSTALL:-no}" = yes ] || refuse_environment "$1" "$missing"
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
    local missing
    missing=$(missing_packages "$1") || exit 2
    [ -z "$missing" ] || refuse_environment "$1" "$missing"
}

choose_environment() {  # sets ENVIRONMENT (its folder), PYTHON, and ACTIVE (yes: activated, and not made here)
    local stamp
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
    local file torch
    file=$(requirements_of "$1")
    echo "installing $file into $ENVIRONMENT (once; a minute for the core, several for everything)" >&2
    (
        cd "$ROOT" || exit 1  # the paths in the requirements files are relative to here
        if [ -n "${IMPART_TORCH_INDEX:-}" ]; then
            torch=$(grep '^torch==' requirements-core.txt)
            "$PYTHON" -m pip install --quiet --index-url "$IMPART_TORCH_INDEX" "$torch" || exit 1
        fi
        "$PYTHON" -m pip install --quiet -r "$file" || exit 1
        # Every process of vLLM finds the load format `impart` by the entry point of an installed suite.
        if "$PYTHON" -m pip show --quiet vllm 2>/dev/null; then
            "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation -e .
        fi
    ) || {
        echo "error: pip could not install $file into $ENVIRONMENT; its message is above" >&2
        exit 1
    }
    fingerprint_of "$file" > "$ENVIRONMENT/.impart-requirements-$1"
}

refuse_environment() {  # KIND "missing packages"
    local instead=
    if [ "$ACTIVE" = yes ]; then instead="deactivate it to use one of the suite's own, or "; fi
    echo "error: the environment $ENVIRONMENT lacks $2; ${instead}install with: $(installing_command "$1")" >&2
    exit 2
}

installing_command() {  # KIND -> a command line that can be pasted
    local consent=
    if [ "$ACTIVE" = yes ]; then consent="IMPART_INSTALL=yes "; fi
    printf '%sbash %q %s' "$consent" "$ROOT/requirements/environment.sh" "$1"
}

missing_packages() {  # KIND -> the names that cannot be imported, "a, b", or nothing
    (cd "$ROOT" && "$PYTHON" requirements/missing.py "$(requirements_of "$1")")
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
    echo "$1 $(cat "$ROOT"/requirements*.txt "$ROOT"/requirements/constraints-cpu.txt | cksum | tr ' ' -)"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    case ${1:-} in
        core | full | small) use_environment "$1" ;;
        *) echo "error: which requirements? usage: bash requirements/environment.sh core|full|small" >&2; exit 2 ;;
    esac
    echo "$PYTHON"
fi
