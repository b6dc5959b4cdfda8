#!/usr/bin/env bash
# Table 2: three backbones, each with its own loss and with HingeABL, five seeds. A finished run is
# not run again, so the script can be stopped and started anew. Cut it down with
#   SEEDS       default "1 5 42 66 233"
#   BACKBONES   default "atlop docunet kd_docre"
#   RECIPE      roberta (default) or minilm: which of scripts/run_*.sh to run
#   OUT         default runs/table2-$RECIPE
# Flags given to this script go to every run:
#   SEEDS=66 RECIPE=minilm bash scripts/run_table2.sh --data_dir /path/to/redocred
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
SEEDS="${SEEDS:-1 5 42 66 233}"
BACKBONES="${BACKBONES:-atlop docunet kd_docre}"
RECIPE="${RECIPE:-roberta}"
OUT="${OUT:-$ROOT/runs/table2-$RECIPE}"
[[ -f "$ROOT/scripts/run_$RECIPE.sh" ]] || { echo "error: RECIPE=$RECIPE is unknown" >&2; exit 2; }

for backbone in $BACKBONES; do
  case "$backbone" in
    atlop) own=ATL ;;
    docunet) own=balance_softmax ;;
    kd_docre) own=AFL ;;
    *) echo "error: BACKBONES: $backbone is unknown" >&2; exit 2 ;;
  esac
  for loss in "$own" HingeABL; do
    for seed in $SEEDS; do
      run="$OUT/$backbone-$loss-seed$seed"
      if [[ -f "$run/results.json" ]]; then
        echo "$run: finished already"
        continue
      fi
      echo "$run: starting, $(date +%H:%M)"
      BACKBONE="$backbone" LOSS="$loss" bash "$ROOT/scripts/run_$RECIPE.sh" \
        --seed "$seed" --output_dir "$run" "$@"
    done
  done
done

"$PYTHON" - "$OUT" <<'PYTHON'
import json, statistics, sys
from pathlib import Path

cells = {}
for path in sorted(Path(sys.argv[1]).glob("*-seed*/results.json")):
    run = json.loads(path.read_text())
    key = run["args"]["backbone"], run["args"]["loss_type"]
    if "test" in run:
        cells.setdefault(key, []).append(run["test"])
print(f"{'backbone':10} {'loss':16} {'test F1':>8} {'Ign F1':>8}  seeds")
for (backbone, loss), tests in cells.items():
    f1, ign_f1 = (100 * statistics.mean(x[name] for x in tests) for name in ("f1", "ign_f1"))
    print(f"{backbone:10} {loss:16} {f1:8.2f} {ign_f1:8.2f}  {len(tests)}")
PYTHON
