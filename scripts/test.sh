#!/usr/bin/env bash
# The style checks and the tests but for the slow ones; arguments go to pytest: -k losses, or
# -m "not gpu" for the slow ones, too
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
install dev requirements-dev.txt

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m tach check
# Two tests at once, each with one thread: faster than one with two, and no sum depends on threads.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q -p no:tach -n 2 --dist worksteal \
  -m "not slow and not gpu" tests "$@"
