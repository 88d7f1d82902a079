# Sourced by the scripts of this folder: _run.sh FILE USAGE [ARGUMENTS...] runs eval/FILE with the arguments.
# PYTHON: the interpreter (default: python).
set -euo pipefail

file=$1 usage=$2
shift 2
if [[ $# -lt 1 ]]; then
  echo "error: MODEL is missing; usage: bash eval/scripts/${0##*/} $usage [flags of eval/$file]" >&2
  exit 2
fi
exec "${PYTHON:-python}" "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/$file" "$@"
