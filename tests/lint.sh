#!/usr/bin/env bash
# Lint, layout and types, with the tools of requirements-dev.txt in the environment that runs the tests.
#
#   bash tests/lint.sh          says what is wrong and changes nothing
#   bash tests/lint.sh --fix    mends what ruff can mend, layout included
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../requirements/environment.sh"
help_if_asked "$@"
cd "$ROOT"
find_environment core
shortcomings=$("$PYTHON" requirements/missing.py requirements-dev.txt)
if [ -n "$shortcomings" ]; then
    printf 'error: %s %s; install with: %q -m pip install -r requirements-dev.txt\n' "$ENVIRONMENT" "$shortcomings" "$PYTHON" >&2
    exit 2
fi
if [ "${1:-}" = --fix ]; then
    "$PYTHON" -m ruff check --quiet --fix . || true  # what is left is reported below
    "$PYTHON" -m ruff format --quiet .
fi
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
