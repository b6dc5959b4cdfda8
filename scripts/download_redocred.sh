#!/usr/bin/env bash
# Fetches Re-DocRED and verifies it: scripts/download_redocred.sh [FOLDER [NAME ...]], see
# download_redocred.py, which needs no package. PYTHON names an interpreter.
set -euo pipefail
HERE="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
for PYTHON in "${PYTHON:-}" "$HERE/../.venv/bin/python" python3 python; do
  if type -P "$PYTHON" > /dev/null; then exec "$PYTHON" "$HERE/download_redocred.py" "$@"; fi
done
echo "error: download_redocred.sh needs Python 3.10 or newer" >&2
exit 2
