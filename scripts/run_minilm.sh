#!/usr/bin/env bash
# A recipe for laptops: a pretrained MiniLM (6 layers of width 384) on Re-DocRED, in one and a half to
# three hours on 2 CPU cores. BACKBONE is atlop, docunet, kd_docre or dreeam, LOSS one of those of
# --loss_type. Flags given to this script come last, so they win:
#   LOSS=ATL bash scripts/run_minilm.sh --data_dir /path/to/redocred --seed 1
# The encoder comes from the package index; ENCODER names another one (a folder or a hub name, e.g.
# sentence-transformers/all-MiniLM-L6-v2).
#
# Different from run_bert.sh: larger learning rates for fewer steps, emb_size as the encoder's width,
# and, to save time, no dropout of attention weights and batches of documents of similar length.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
DATA="$(data_dir "$@")"
BACKBONE="${BACKBONE:-atlop}"
LOSS="${LOSS:-HingeABL}"

ENCODER="${ENCODER:-$(minilm)}"

"${TRAIN[@]}" \
  --data_dir "$DATA" \
  --model_name_or_path "$ENCODER" \
  --backbone "$BACKBONE" \
  --loss_type "$LOSS" \
  --hinge_norm separate \
  --train_batch_size 4 \
  --test_batch_size 8 \
  --num_labels 4 \
  --emb_size 384 \
  --learning_rate 1e-4 \
  --classifier_lr 5e-4 \
  --attention_dropout 0 \
  --group_by_length \
  --max_grad_norm 1.0 \
  --warmup_ratio 0.06 \
  --num_train_epochs 10 \
  --max_seq_length 1024 \
  --seed 66 \
  "$@"
