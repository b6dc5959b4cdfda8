#!/usr/bin/env bash
# Fetches Re-DocRED and verifies it: scripts/download_redocred.sh [FOLDER [NAME ...]], see
# download_redocred.py, which needs no package. PYTHON names an interpreter.
set -euo pipefail
HERE="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
candidates=("$HERE/../.venv/bin/python" python3 python)
[[ -z "${PYTHON:-}" ]] || candidates=("$PYTHON")
for python in "${candidates[@]}"; do
  if type -P "$python" > /dev/null; then exec "$python" "$HERE/download_redocred.py" "$@"; fi
done
echo "error: download_redocred.sh finds no Python" >&2
exit 2
