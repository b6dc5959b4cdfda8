#!/usr/bin/env bash
# CDR (chemical-induced disease relations; 500 / 500 / 500 abstracts), with ATLOP's recipe: SciBERT,
# learning rate 2e-5, 30 epochs, batches of 4, one relation a pair at most. Reads the three files
# that ATLOP reads, {train,dev,test}_filter.data, from CDR_DIR (default dataset/cdr). LOSS is one of
# those of train.py. RECIPE=minilm takes MiniLM and run_minilm.sh's learning rates instead. Flags
# given to this script come last, so they win:
#   CDR_DIR=/path LOSS=ATL bash scripts/run_cdr.sh --seed 1
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
CDR_DIR="${CDR_DIR:-$ROOT/dataset/cdr}"
DATA="$ROOT/dataset/cdr-docred"
LOSS="${LOSS:-HingeABL}"

for split in train dev test; do
  if [[ ! -f "$CDR_DIR/${split}_filter.data" ]]; then
    echo "error: CDR_DIR=$CDR_DIR: no ${split}_filter.data; the files are made by the scripts of" \
      "https://github.com/fenchri/edge-oriented-graph" >&2
    exit 2
  fi
done
mkdir -p "$DATA"
for split in train dev test; do
  "$PYTHON" "$ROOT/scripts/convert_bio.py" --corpus cdr \
    "$CDR_DIR/${split}_filter.data" "$DATA/$split.json"
done

case "${RECIPE:-scibert}" in
  scibert) recipe=(run_bert.sh --model_name_or_path allenai/scibert_scivocab_cased
    --learning_rate 2e-5) ;;
  minilm) recipe=(run_minilm.sh) ;;
  *) echo "error: RECIPE=$RECIPE: neither scibert nor minilm" >&2 && exit 2 ;;
esac
bash "$ROOT/scripts/${recipe[0]}" "${recipe[@]:1}" \
  --data_dir "$DATA" --train_file train.json --dev_file dev.json --test_file test.json \
  --rel2id "$DATA/rel2id.json" --loss_type "$LOSS" --num_labels 1 --num_train_epochs 30 "$@"
