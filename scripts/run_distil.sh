#!/usr/bin/env bash
# KD-DocRE's three phases with BERT-base (Tan et al., Findings of ACL 2022): a teacher learns from the
# human labels; a student learns from distant documents, from their labels (AFL) and from the
# teacher's logits (MSE); then it learns from the human labels. Of the run folders OUT/teacher,
# OUT/student and OUT/tuned the last is the result. It can be stopped and started again: a finished
# phase is not run again. Environment variables:
#   HUMAN      documents that people labelled, in the data folder; default train_revised.json
#   DISTANT    distant documents, in the data folder; default train_distant.json, which is not
#              downloaded
#   BACKBONE   default kd_docre
#   TEACHERS   run folders that are there, instead of the first phase; several: their mean
#   OUT        default runs/distil
#   TEACHER_FLAGS, STUDENT_FLAGS, TUNED_FLAGS    further flags of one phase, which come last of all;
#              split at blanks
# GPUS=2 at most, for the batches of the last two phases are of 2 documents (1 with RoBERTa's numbers).
# Flags given to this script go to every phase, behind its own, so they win:
#   bash scripts/run_distil.sh --data_dir /path/to/redocred --seed 1
# The numbers for RoBERTa-large:
#   TEACHER_FLAGS="--num_train_epochs 30 --train_batch_size 4" \
#   STUDENT_FLAGS="--num_train_epochs 20 --train_batch_size 4 --gradient_accumulation_steps 1
#     --learning_rate 1e-5 --classifier_lr 5e-5 --max_grad_norm 1" \
#   TUNED_FLAGS="--num_train_epochs 20 --train_batch_size 1 --warmup_ratio 0.1 --max_grad_norm 1
#     --num_labels 3" \
#   bash scripts/run_distil.sh --model_name_or_path roberta-large --emb_size 1024
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
DATA="$(data_dir "$@")"
check_phases "$DATA" "$@"
if ((${GPUS:-1} > 2)) && [[ "$* ${STUDENT_FLAGS:-} ${TUNED_FLAGS:-}" != *--train_batch_size* ]]; then
  echo "error: GPUS=$GPUS: the student's batches are of 2 documents; give --train_batch_size" >&2
  exit 2
fi
OUT="${OUT:-$ROOT/runs/distil}"
TRAIN+=(--data_dir "$DATA" --backbone "${BACKBONE:-kd_docre}" --loss_type AFL --gamma 1 --resume
  --model_name_or_path bert-base-cased --emb_size 768 --num_labels 4 --max_seq_length 1024
  --warmup_ratio 0.06 --adam_epsilon 1e-6 --seed 66)

read -ra teachers <<< "${TEACHERS:-}"
if ((${#teachers[@]} == 0)); then
  teachers=("$OUT/teacher")
  "${TRAIN[@]}" \
    --output_dir "$OUT/teacher" \
    --train_file "$HUMAN" \
    --learning_rate 3e-5 \
    --classifier_lr 1e-4 \
    --train_batch_size 8 \
    --gradient_accumulation_steps 1 \
    --max_grad_norm 1.0 \
    --num_train_epochs 50 \
    "$@" ${TEACHER_FLAGS:-}
fi

# From the pretrained encoder; --teacher_weight is of the mean squared error over all classes.
"${TRAIN[@]}" \
  --output_dir "$OUT/student" \
  --train_file "$DISTANT" \
  --teacher "${teachers[@]}" \
  --teacher_weight 1.0 \
  --teacher_evidence 0 \
  --label_weight 1.0 \
  --learning_rate 3e-5 \
  --classifier_lr 1e-4 \
  --train_batch_size 2 \
  --gradient_accumulation_steps 4 \
  --max_grad_norm 5.0 \
  --num_train_epochs 50 \
  --evaluation_steps 5000 \
  "$@" ${STUDENT_FLAGS:-}

"${TRAIN[@]}" \
  --output_dir "$OUT/tuned" \
  --train_file "$HUMAN" \
  --init_path "$OUT/student" \
  --learning_rate 1e-6 \
  --classifier_lr 3e-6 \
  --train_batch_size 2 \
  --gradient_accumulation_steps 1 \
  --max_grad_norm 2.0 \
  --num_train_epochs 10 \
  "$@" ${TUNED_FLAGS:-}
