# Sourced by the scripts. `use_environment core|full` makes $PYTHON an interpreter with the requirements installed:
# an activated environment is used and completed; without one, .venv at the top of the repository is made.
#
#   IMPART_REQUIREMENTS   requirements file to install, in place of the chosen one
#   IMPART_TORCH_INDEX    package index that torch is taken from first: PyTorch's CPU index spares a machine without
#                         a GPU the CUDA build of several GB
#   IMPART_VENV           folder of the environment that is made (default: .venv)
#   PYTHON                interpreter that makes it (default: python3)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

requirements_of() {  # core|full -> file
    if [ -n "${IMPART_REQUIREMENTS:-}" ]; then echo "$IMPART_REQUIREMENTS"
    elif [ "$1" = core ]; then echo requirements-core.txt
    elif nvidia-smi -L >/dev/null 2>&1; then echo requirements.txt
    else echo requirements-cpu.txt; fi
}

use_environment() {  # core|full
    local folder=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    if [ -z "$folder" ]; then
        folder=${IMPART_VENV:-$ROOT/.venv}
        if [ ! -x "$folder/bin/python" ]; then
            "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
                echo "error: Python 3.11 or newer is needed, not $("${PYTHON:-python3}" --version); set PYTHON" >&2
                exit 2
            }
            echo "making an environment in $folder" >&2
            "${PYTHON:-python3}" -m venv "$folder"
        fi
    fi
    PYTHON=$folder/bin/python
    local file kind stamp
    for kind in core full; do
        if [ "$kind" != "$1" ] && [ "$1" = full ]; then continue; fi
        file=$(requirements_of "$kind")
        stamp=$folder/.impart-requirements-$kind
        if [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint_of "$file")" ]; then return; fi
    done
    file=$(requirements_of "$1")
    echo "installing $file into $folder (once; a minute for the core, several for everything)" >&2
    (
        cd "$ROOT"  # the paths in the requirements files are relative to here
        if [ -n "${IMPART_TORCH_INDEX:-}" ]; then
            "$PYTHON" -m pip install --quiet --index-url "$IMPART_TORCH_INDEX" "$(grep ^torch== requirements-core.txt)"
        fi
        "$PYTHON" -m pip install --quiet -r "$file"
    )
    fingerprint_of "$file" > "$folder/.impart-requirements-$1"
}

fingerprint_of() {  # requirements file -> one word for the state of all of them
    echo "$1 $(cat "$ROOT"/requirements*.txt "$ROOT"/requirements/constraints-cpu.txt | cksum | tr ' ' -)"
}
