#!/usr/bin/env bash
# Table 2: three backbones, each with its own loss and with HingeABL, five seeds; ends in a report,
# OUT/report/report.md. Finished runs are not run again, so it can be stopped and started anew. Cut
# it down with
#   SEEDS       default "1 5 42 66 233"
#   BACKBONES   default "atlop docunet kd_docre"
#   RECIPE      roberta (default) or minilm: which of scripts/run_*.sh to run
#   ENCODER     default: the recipe's
#   DATA        folder of the data files; default: REDOCRED_DIR, or Re-DocRED is downloaded
#   OUT         default runs/table2-$RECIPE
#   JOBS      runs at once, one thread or one GPU each; default 1
# Flags given to this script go to every run:
#   SEEDS=66 RECIPE=minilm bash scripts/run_table2.sh --num_train_epochs 4
set -euo pipefail
RECIPE="${RECIPE:-roberta}"
source "$(dirname "${BASH_SOURCE[0]}")/run_many.sh"
OUT="${OUT:-$ROOT/runs/table2-$RECIPE}"

for seed in $SEEDS; do
  for backbone in ${BACKBONES:-atlop docunet kd_docre}; do
    case "$backbone" in
      atlop) own=ATL ;;
      docunet) own=balance_softmax ;;
      kd_docre) own=AFL ;;
      *) fail "BACKBONES: $backbone is unknown" ;;
    esac
    for loss in "$own" HingeABL; do
      add_run "$backbone-$loss" "$seed" --backbone "$backbone" --loss_type "$loss"
    done
  done
done
run_all "$@"
