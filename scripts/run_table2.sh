#!/usr/bin/env bash
# Table 2: three backbones, each with its own loss and with HingeABL, five seeds, then a report,
# OUT/report/report.md. It can be stopped and started again: finished runs are not run again.
# Environment variables:
#   SEEDS       default "1 5 42 66 233"
#   BACKBONES   default "atlop docunet kd_docre"; others: dreeam, and dreeam:e0.1 (or of any
#               backbone), which learns from evidence (--evidence_weight)
#   RECIPE      roberta (default), bert or minilm: which of scripts/run_*.sh to run
#   ENCODER     default: the recipe's
#   DATA        folder of the data files; default: REDOCRED_DIR, or Re-DocRED is downloaded
#   OUT         default runs/table2-$RECIPE
#   JOBS        runs at once, one thread each, the GPUs in turn; default 1. Several on a GPU share it
#               through CUDA's MPS where that works
# Flags given to this script go to every run:
#   SEEDS=66 RECIPE=minilm bash scripts/run_table2.sh --num_train_epochs 4
# Evidence and fusion, with ATL and with HingeABL:
#   BACKBONES="atlop dreeam dreeam:e0.05" bash scripts/run_table2.sh --tune_threshold --fusion
set -euo pipefail
RECIPE="${RECIPE:-roberta}"
source "$(dirname "${BASH_SOURCE[0]}")/run_many.sh"
OUT="${OUT:-$ROOT/runs/table2-$RECIPE}"

# "docunet balance_softmax" and so on: each backbone and its own loss
KNOWN="$(PYTHONPATH="$ROOT" "$PYTHON" -c 'from backbones import BACKBONES
for name, kind in BACKBONES.items(): print(name, kind.own_loss)')"
for seed in $SEEDS; do
  for backbone in ${BACKBONES:-atlop docunet kd_docre}; do
    kind="${backbone%%:*}" weight=()
    own="$(sed -n "s/^$kind //p" <<< "$KNOWN")"
    [[ "$own" ]] || fail "BACKBONES: $backbone is unknown"
    if [[ "$backbone" =~ :e([0-9.]+)$ ]]; then
      weight=(--evidence_weight "${BASH_REMATCH[1]}")
    elif [[ "$backbone" == *:* ]]; then
      fail "BACKBONES: $backbone: there is only :e0.1, the weight of the evidence"
    fi
    for loss in "$own" HingeABL; do
      add_run "${backbone//:/-}-$loss" "$seed" --backbone "$kind" --loss_type "$loss" \
        ${weight[@]+"${weight[@]}"}  # bash before 4.4: an empty array is unbound
    done
  done
done
run_all "$@"
