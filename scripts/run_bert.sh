#!/usr/bin/env bash
# The paper's recipe for ATLOP with BERT-base (Appendix B; Table 3) on Re-DocRED, which is downloaded
# where it is missing. To switch the loss edit --loss_type; the choices are ATL, balance_softmax, AML,
# AFL, SAT, MeanSAT, HingeABL, PMTEM, NCRL, ATGL and SSR_PU (for incomplete labels; its paper has no
# limit to the relations of a pair: --num_labels -1). (--margin is by default 5 for HingeABL, 1 for AML
# and 0.25 for SSR_PU.) Flags given to this script come last, so they win:
#   bash scripts/run_bert.sh --loss_type ATL --seed 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
DATA="$(data_dir "$@")"

"${TRAIN[@]}" \
  --data_dir "$DATA" \
  --transformer_type bert \
  --model_name_or_path bert-base-cased \
  --loss_type HingeABL \
  --hinge_norm separate \
  --emb_size 768 \
  --train_batch_size 4 \
  --test_batch_size 8 \
  --gradient_accumulation_steps 1 \
  --num_labels 4 \
  --learning_rate 5e-5 \
  --classifier_lr 1e-4 \
  --adam_epsilon 1e-6 \
  --max_grad_norm 1.0 \
  --warmup_ratio 0.06 \
  --num_train_epochs 30 \
  --max_seq_length 1024 \
  --seed 66 \
  --precision auto \
  "$@"
