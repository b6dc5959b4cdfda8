#!/usr/bin/env bash
# DREEAM's self-training with BERT-base (Ma et al., EACL 2023): a teacher learns from the human labels
# and their evidence; a student learns from distant documents, from their labels (ATL) and from the
# teacher's attention; then it learns from the human labels and their evidence. Of the run folders
# OUT/teacher, OUT/student and OUT/tuned the last is the result. It can be stopped and started again:
# a finished phase is not run again. Environment variables:
#   HUMAN      documents that people labelled, in the data folder; default train_revised.json
#   DISTANT    distant documents, in the data folder; default train_distant.json, which is not
#              downloaded
#   TEACHERS   run folders that are there, instead of the first phase; several: their mean
#   OUT        default runs/self-training
#   TEACHER_FLAGS, STUDENT_FLAGS, TUNED_FLAGS    further flags of one phase, which come last of all;
#              split at blanks
# Flags given to this script go to every phase, behind its own, so they win. Fusion belongs to it:
#   bash scripts/run_self_training.sh --data_dir /path/to/redocred --fusion
# On DocRED, whose test split has no labels:
#   HUMAN=train_annotated.json bash scripts/run_self_training.sh --data_dir docred --dev_file dev.json \
#     --test_file "" --fusion
# The numbers for RoBERTa-large:
#   TEACHER_FLAGS="--evidence_weight 0.05 --learning_rate 3e-5" \
#   STUDENT_FLAGS="--learning_rate 1e-5 --classifier_lr 5e-5 --num_train_epochs 5" \
#   TUNED_FLAGS="--evidence_weight 0.05 --warmup_ratio 0.1" \
#   bash scripts/run_self_training.sh --model_name_or_path roberta-large --emb_size 1024 --fusion
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
DATA="$(data_dir "$@")"
check_phases "$DATA" "$@"
OUT="${OUT:-$ROOT/runs/self-training}"
TRAIN+=(--data_dir "$DATA" --backbone dreeam --loss_type ATL --resume
  --model_name_or_path bert-base-cased --emb_size 768 --num_labels 4 --max_seq_length 1024
  --evidence_threshold 0.2 --warmup_ratio 0.06 --adam_epsilon 1e-6 --seed 66)

read -ra teachers <<< "${TEACHERS:-}"
if ((${#teachers[@]} == 0)); then
  teachers=("$OUT/teacher")
  "${TRAIN[@]}" \
    --output_dir "$OUT/teacher" \
    --train_file "$HUMAN" \
    --evidence_weight 0.1 \
    --learning_rate 5e-5 \
    --classifier_lr 1e-4 \
    --train_batch_size 4 \
    --gradient_accumulation_steps 1 \
    --max_grad_norm 1.0 \
    --num_train_epochs 30 \
    "$@" ${TEACHER_FLAGS:-} # ATLOP's recipe, as in run_bert.sh
fi

# From the pretrained encoder. Distant labels name no evidence: the teacher's attention is in its place.
"${TRAIN[@]}" \
  --output_dir "$OUT/student" \
  --train_file "$DISTANT" \
  --teacher "${teachers[@]}" \
  --teacher_weight 0 \
  --teacher_evidence 1 \
  --label_weight 1.0 \
  --evidence_weight 0 \
  --learning_rate 3e-5 \
  --classifier_lr 1e-4 \
  --train_batch_size 4 \
  --gradient_accumulation_steps 2 \
  --max_grad_norm 5.0 \
  --num_train_epochs 2 \
  --evaluation_steps 5000 \
  "$@" ${STUDENT_FLAGS:-}

"${TRAIN[@]}" \
  --output_dir "$OUT/tuned" \
  --train_file "$HUMAN" \
  --init_path "$OUT/student" \
  --evidence_weight 0.1 \
  --learning_rate 1e-6 \
  --classifier_lr 3e-6 \
  --train_batch_size 4 \
  --gradient_accumulation_steps 1 \
  --max_grad_norm 2.0 \
  --num_train_epochs 10 \
  "$@" ${TUNED_FLAGS:-}
