#!/usr/bin/env bash
# Tables 1, 3, 4 and 7: the paper's seven losses, five seeds, then a report, OUT/report/report.md. It
# can be stopped and started again: finished runs are not run again. Environment variables:
#   SEEDS     default "1 5 42 66 233"
#   LOSSES    default: the seven of Table 3; others: PMTEM, NCRL, ATGL, SSR_PU. Variants: HingeABL:joint
#             (--hinge_norm), HingeABL:m3 and AML:m2 (--margin), AFL:g2 (--gamma), HingeABL:joint:m3,
#             PMTEM:w0.1,0.5 (--entropy_weight), NCRL:s0.05 (--ncrl_shift), ATGL:w4
#             (--positive_weight), SSR_PU:f2 (--prior_factor); losses.py says how they are named
#   RECIPE    bert (default), roberta or minilm: which of scripts/run_*.sh to run
#   ENCODER   default: the recipe's
#   DATA      folder of the data files; default: REDOCRED_DIR, or Re-DocRED is downloaded
#   OUT       default runs/table3-$RECIPE
#   JOBS      runs at once, one thread each, the GPUs in turn; default 1. Several on a GPU share it
#             through CUDA's MPS where that works
# Flags given to this script go to every run: with --save_logits the report can draw Figure 1b, 1c.
#   SEEDS="1 5" LOSSES="ATL HingeABL HingeABL:joint" RECIPE=minilm bash scripts/run_table3.sh
# The margin sweep:
#   LOSSES="HingeABL:m1 HingeABL:m3 HingeABL:m5 HingeABL:m7 HingeABL:m10" bash scripts/run_table3.sh
set -euo pipefail
RECIPE="${RECIPE:-bert}"
source "$(dirname "${BASH_SOURCE[0]}")/run_many.sh"
OUT="${OUT:-$ROOT/runs/table3-$RECIPE}"

# A line for each loss: its name in run folders (HingeABL:joint:m5 becomes HingeABL-joint, because
# margin 5 is the default), then its flags.
KINDS="$(PYTHONPATH="$ROOT" "$PYTHON" -c 'import sys
from losses import loss_label, read_label
for label in sys.argv[1:]:
    try:
        loss, options = read_label(label)
    except ValueError as error:
        sys.exit(f"error: LOSSES: {error}")
    flags = [f"--loss_type {loss}"]
    for name, value in options.items():
        values = value if isinstance(value, tuple) else [value]
        flags.append(f"--{name} " + " ".join(map(str, values)))
    print(loss_label(loss, options).replace(":", "-"), *flags)
' ${LOSSES:-ATL balance_softmax AML AFL SAT MeanSAT HingeABL})" || exit 2
for seed in $SEEDS; do
  while read -r name flags; do
    # shellcheck disable=SC2086  # words without blanks
    add_run "$name" "$seed" $flags --tune_threshold
  done <<< "$KINDS"
done
run_all "$@"
