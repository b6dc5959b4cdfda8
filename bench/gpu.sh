#!/usr/bin/env bash
# What docs/performance.md says of a GPU, in some ten minutes: the tests, a traced step of every backbone
# (kernels, milliseconds of the card), training and evaluation against the baseline. run_bert.sh has
# 22,890 steps. DATA: folder of the data files, else Re-DocRED is downloaded; flags go to bench/run.py.
#   DATA=dataset/redocred bash bench/gpu.sh
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/setup.sh"
DATA="$(data_dir ${DATA:+--data_dir "$DATA"} "$@")" || exit 2
cd "$ROOT"
install dev requirements-dev.txt
failed=0 # each part runs, also after one that failed
trap failed=1 ERR
"$PYTHON" -m pytest -q -m gpu tests/test_cuda.py
"$PYTHON" bench/step.py --device cuda --entities 15 20 22 29 --tokens 300 --repeats 50
"$PYTHON" bench/step.py --device cuda --entities 15 20 22 29 --tokens 300 --width 384 --layers 6 --repeats 50
"$PYTHON" bench/run.py --device cuda --data_dir "$DATA" --only memory train evaluate \
  --documents 400 --eval_documents 400 "$@"
exit "$failed"
