#!/usr/bin/env bash
# All tests and the style checks; arguments go to pytest: bash scripts/test.sh -k losses
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
[[ "$PYTHON" != "$ROOT/.venv/bin/python" ]] || install dev requirements-dev.txt

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m pytest -q tests "$@"
