#!/usr/bin/env bash
# The paper's recipe with RoBERTa-large (Appendix B; Table 2) on Re-DocRED, which is downloaded where
# it is missing. BACKBONE is atlop, docunet, kd_docre or dreeam, LOSS one of those of
# --loss_type. Flags given to this script come last, so they win:
#   BACKBONE=docunet LOSS=balance_softmax bash scripts/run_roberta.sh --seed 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
DATA="$(data_dir "$@")"
BACKBONE="${BACKBONE:-atlop}"
LOSS="${LOSS:-HingeABL}"

# --unet_lr and --max_height concern DocuNet alone.
"${TRAIN[@]}" \
  --data_dir "$DATA" \
  --backbone "$BACKBONE" \
  --transformer_type roberta \
  --model_name_or_path roberta-large \
  --loss_type "$LOSS" \
  --hinge_norm separate \
  --emb_size 768 \
  --train_batch_size 4 \
  --test_batch_size 8 \
  --gradient_accumulation_steps 1 \
  --num_labels 4 \
  --learning_rate 3e-5 \
  --classifier_lr 1e-4 \
  --unet_lr 4e-4 \
  --max_height 42 \
  --adam_epsilon 1e-6 \
  --max_grad_norm 1.0 \
  --warmup_ratio 0.06 \
  --num_train_epochs 30 \
  --max_seq_length 1024 \
  --seed 66 \
  --precision auto \
  "$@"
