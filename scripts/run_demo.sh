#!/usr/bin/env bash
# The whole pipeline in minutes, on any machine with Python 3.10+ and a package index: no GPU, no hub,
# no data set. Makes a small invented corpus and an encoder with random weights, trains on it with
# HingeABL, selects on dev, tests, and leaves a run folder. Flags given here come last, so they win:
#   bash scripts/run_demo.sh --loss_type ATL --output_dir runs/demo-atl
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

DATA="$ROOT/dataset/demo"
"$PYTHON" "$ROOT/scripts/make_demo.py" --output_dir "$DATA" --seed 66

# The demo begins anew, unless it is to go on with --resume. Another folder is not written over.
[[ " $*" == *" --resume"* || " $*" == *" --output_dir"* ]] || TRAIN+=(--overwrite)

# The learning rates are large because the encoder is not pretrained, emb_size is small as it is.
"${TRAIN[@]}" \
  --data_dir "$DATA" \
  --model_name_or_path "$DATA/encoder" \
  --output_dir "$ROOT/runs/demo" \
  --device cpu \
  --loss_type HingeABL \
  --emb_size 64 \
  --learning_rate 2e-3 \
  --classifier_lr 4e-3 \
  --num_train_epochs 12 \
  --seed 66 \
  "$@"
