#!/usr/bin/env bash
# All tests and the style checks; arguments go to pytest: bash scripts/test.sh -k losses
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
if [[ "$PYTHON" == "$ROOT/.venv/bin/python" ]]; then
  install dev requirements-dev.txt
fi

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m tach check
# Two processes with one thread each: faster than one with two, and no sum depends on threads.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -p no:tach -n 2 --dist worksteal tests "$@"
