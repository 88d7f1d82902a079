#!/usr/bin/env bash
# The whole test suite, in an environment that is made if there is none.
#
#   bash tests/run.sh                 everything, real vLLM included
#   bash tests/run.sh --core          without vLLM and the harnesses: a small environment is enough
#   bash tests/run.sh -k allocation   further arguments go to pytest
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../requirements/environment.sh"
help_if_asked "$@"
cd "$ROOT"
if [ "${1:-}" = --core ]; then
    shift
    use_environment core
    exec "$PYTHON" -m pytest -q -m "not vllm" "$@"
fi
use_environment full
exec "$PYTHON" -m pytest -q "$@"
