#!/usr/bin/env bash
# Whether all of this works on your GPU, and how fast: meant for ten minutes at most, no hub, no data set.
# Leaves check_gpu.json in the current folder; attach it to a bug report. Flags are those of
# check_gpu.py: --only, --output, --device cpu (what a CPU can try of it).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

"$PYTHON" "$ROOT/scripts/check_gpu.py" "$@"
