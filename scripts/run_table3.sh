#!/usr/bin/env bash
# Tables 1, 3, 4 and 7: the paper's seven losses, five seeds; ends in a report,
# OUT/report/report.md. Finished runs are not run again, so it can be stopped and started anew. Cut
# it down with
#   SEEDS     default "1 5 42 66 233"
#   LOSSES    default: the seven of Table 3; others: PMTEM, NCRL, ATGL. Variants: HingeABL:joint
#             (--hinge_norm), HingeABL:m3 and AML:m2 (--margin), AFL:g2 (--gamma), HingeABL:joint:m3,
#             PMTEM:e0.1,0.5 (--entropy_weight), NCRL:s0.05 (--ncrl_shift), ATGL:w4
#             (--positive_weight)
#   RECIPE    bert (default), roberta or minilm: which of scripts/run_*.sh to run
#   ENCODER   default: the recipe's
#   DATA      folder of the data files; default: REDOCRED_DIR, or Re-DocRED is downloaded
#   OUT       default runs/table3-$RECIPE
#   JOBS      runs at once, one thread each, the GPUs in turn; default 1
# Flags given to this script go to every run. The first seed's runs keep their logits, for figures.
#   SEEDS="1 5" LOSSES="ATL HingeABL HingeABL:joint" RECIPE=minilm bash scripts/run_table3.sh
# The margin sweep:
#   LOSSES="HingeABL:m1 HingeABL:m3 HingeABL:m5 HingeABL:m7 HingeABL:m10" bash scripts/run_table3.sh
set -euo pipefail
RECIPE="${RECIPE:-bert}"
source "$(dirname "${BASH_SOURCE[0]}")/run_many.sh"
OUT="${OUT:-$ROOT/runs/table3-$RECIPE}"

# HingeABL:joint:m3 -> name HingeABL-joint-m3 (without what is the default anyway), and its flags
parse_loss() {
  local parts part number='[0-9]+([.][0-9]+)?'
  IFS=: read -ra parts <<< "$1"
  name="${parts[0]}" flags=(--loss_type "${parts[0]}")
  [[ "$KNOWN" == *" $name "* ]] || fail "LOSSES: $1 is unknown, it is none of${KNOWN% }"
  for part in "${parts[@]:1}"; do
    if [[ "$name-$part" =~ ^(HingeABL.*|AML)-m$number$ ]]; then
      flags+=(--margin "${part#m}")
    elif [[ "$name-$part" =~ ^AFL-g$number$ ]]; then
      flags+=(--gamma "${part#g}")
    elif [[ "$name-$part" =~ ^HingeABL.*-(joint|separate)$ ]]; then
      flags+=(--hinge_norm "$part")
    elif [[ "$name-$part" =~ ^PMTEM-e$number,$number$ ]]; then
      part="${part#e}"
      flags+=(--entropy_weight "${part%,*}" "${part#*,}")
      part="e$part"
    elif [[ "$name-$part" =~ ^NCRL-s$number$ ]]; then
      flags+=(--ncrl_shift "${part#s}")
    elif [[ "$name-$part" =~ ^ATGL-w$number$ ]]; then
      flags+=(--positive_weight "${part#w}")
    else
      fail "LOSSES: $1: :$part is unknown; there are :joint and :m3 of HingeABL, :m2 of AML, :g2 of" \
        "AFL, :e1,1 of PMTEM, :s0.05 of NCRL and :w4 of ATGL"
    fi
    case "${parts[0]}:$part" in
      HingeABL:separate | HingeABL:m5 | AML:m1 | AFL:g1 | PMTEM:e1,1 | NCRL:s0 | ATGL:w16.5) ;;
      *) name+="-$part" ;;
    esac
  done
}

KNOWN=" $(PYTHONPATH="$ROOT" "$PYTHON" -c 'from losses import LOSSES; print(*LOSSES)') "
first=
for seed in $SEEDS; do
  first="${first:-$seed}"
  for loss in ${LOSSES:-ATL balance_softmax AML AFL SAT MeanSAT HingeABL}; do
    parse_loss "$loss"
    [[ "$seed" != "$first" ]] || flags+=(--save_logits)
    add_run "$name" "$seed" "${flags[@]}" --tune_threshold
  done
done
run_all "$@"
