# Sourced by run_table2.sh and run_table3.sh, which describe the variables: many runs of one recipe,
# JOBS at once, then the report. A finished run is not run again (train.py says if its flags or data
# were others), an interrupted one continues, and a failed one does not stop the others. How far all
# are is a line a minute, on a terminal one line kept up to date (progress.py).

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
SEEDS="${SEEDS:-1 5 42 66 233}"

fail() {
  echo "error: $*" >&2
  exit 2
}

# add_run NAME SEED FLAG...: adds a run to RUNS, quoted by printf %q for eval.
RUNS=()
add_run() {
  local run start
  printf -v start '%q ' "$1" "$2"
  for run in ${RUNS[@]+"${RUNS[@]}"}; do
    [[ "$run" != "$start"* ]] || fail "$1 seed $2 is asked for twice"
  done
  RUNS+=("$(printf '%q ' "$@")")
}

test_f1() {
  "$PYTHON" -c 'import json, sys
print(f"test F1 {100 * json.load(open(sys.argv[1]))['\''test'\'']['\''f1'\'']:.2f}")' "$1" 2> /dev/null ||
    echo "no test F1"
}

# run_one "K NAME SEED FLAG...": the K-th run; prints its outcome. Each of the JOBS runs at a time has
# a slot, 0 to JOBS - 1, one thread, and the GPU with the number of its slot (modulo their number).
run_one() {
  local k name seed given run log line slot status=0 start=$SECONDS finished=
  eval "given=($GIVEN); set -- $1"  # both quoted by printf %q
  k="$1" name="$2" seed="$3"
  shift 3
  run="$OUT/$name-seed$seed" line="[$k of $TOTAL] $name seed $seed"
  log="$run.log"
  [[ ! -e "$NOTES/interrupted" ]] || return 255
  if [[ -f "$run/results.json" ]]; then
    finished=yes log="$NOTES/$k.log"  # the run's own log stays
  fi
  slot=0
  until mkdir "$NOTES/slot$slot" 2> /dev/null; do slot=$(((slot + 1) % JOBS)); done
  # shellcheck disable=SC2064  # the slot of now
  trap "rmdir '$NOTES/slot$slot'" EXIT
  if ((JOBS > 1)); then
    IFS=, read -ra gpus <<< "$GPUS_HERE"
    if ((${#gpus[@]})); then export CUDA_VISIBLE_DEVICES="${gpus[slot % ${#gpus[@]}]}"; fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  fi
  bash "$ROOT/scripts/run_$RECIPE.sh" --data_dir "$DATA" \
    ${ENCODER:+--model_name_or_path "$ENCODER"} "${given[@]}" "$@" \
    --seed "$seed" --output_dir "$run" --resume > "$log" 2>&1 || status=$?
  if ((status == 130)); then
    touch "$NOTES/interrupted"
    echo "$CLEAR$line: interrupted" >&2
    return 255  # xargs starts no other
  fi
  if ((status == 0)) && [[ "$finished" ]]; then
    echo "$CLEAR$line: $(test_f1 "$run/results.json"), finished before"
    return
  fi
  if ((status == 0)); then
    line+=": $(test_f1 "$run/results.json"), $((SECONDS - start)) s"
  else
    echo "$name-seed$seed" >> "$NOTES/failed"
    line+=": failed after $((SECONDS - start)) s: "
    line+="$({ grep '^error:' "$log" || cat "$log"; } | tail -n 1)"
    [[ "$finished" ]] || line+=" ($log)"
  fi
  echo "$CLEAR$line"
}

# CUDA's multi-process service (MPS) lets the kernels of several runs share a GPU; without it they take
# turns. Started where a GPU has more than one run, unless the user has a daemon already. One daemon
# serves all GPUs that it sees, those of GPUS_HERE. It numbers them anew: with CUDA_VISIBLE_DEVICES=2,5
# its clients call them 0 and 1. Where a client does not find them all, or no server of this daemon
# has served it, the runs go on without.
start_mps() {
  local gpus numbers client
  IFS=, read -ra gpus <<< "$GPUS_HERE"
  ((${#gpus[@]} > 0 && JOBS > ${#gpus[@]})) || return 0
  [[ ! " $GIVEN" =~ " --device"[\ =]cpu ]] || return 0
  [[ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ]] || return 0
  type -P nvidia-cuda-mps-control > /dev/null || return 0
  MPS="$(mktemp -d /tmp/mps.XXXX)"  # not in TMPDIR: the path of a socket has at most 107 bytes
  export CUDA_MPS_PIPE_DIRECTORY="$MPS" CUDA_MPS_LOG_DIRECTORY="$MPS"
  numbers="${!gpus[*]}" numbers="${numbers// /,}"
  client="import torch; [torch.ones(1, device=f'cuda:{i}').item() for i in range(${#gpus[@]})]"
  if {
    nvidia-cuda-mps-control -d &&
      CUDA_VISIBLE_DEVICES="$numbers" timeout --foreground 120 "$PYTHON" -c "$client" &&
      echo get_server_list | timeout 30 nvidia-cuda-mps-control | grep '[0-9]'
  } > "$MPS/said" 2>&1; then
    GPUS_HERE="$numbers"
    echo "the runs share the GPUs through CUDA's MPS"
  else
    echo "the runs go on without CUDA's MPS, which does not work here:" \
      "$(grep -im 1 error "$MPS/said" || tail -n 1 "$MPS/said")"
    stop_mps
  fi
}

stop_mps() {
  [[ "$MPS" ]] || return 0
  echo quit | timeout 60 nvidia-cuda-mps-control > /dev/null 2>&1 || true
  rm -rf "$MPS"
  MPS=
  unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
}

# start_progress FOLDER...: prints how far the runs in these folders are, until stop_progress.
start_progress() {
  "$PYTHON" "$ROOT/scripts/progress.py" "$(cat "$ROOT/scripts/run_$RECIPE.sh") $GIVEN" \
    "$NOTES/failed" "$@" &
  PROGRESS=$!
}

stop_progress() {
  [[ "$PROGRESS" ]] || return 0
  kill "$PROGRESS" 2> /dev/null || true
  wait "$PROGRESS" 2> /dev/null || true
  PROGRESS=
  printf '%s' "$CLEAR"
}

# After Ctrl-C, which the runs get, too: waits until they have saved their state and ended.
interrupted() {
  while compgen -G "$NOTES/slot*" > /dev/null; do sleep 0.2; done
  exit 130
}

# run_all FLAG...: all RUNS with these flags, too, then the report in OUT/report. Ends the script,
# with exit code 1 if a run failed.
run_all() {
  local k=0 to_do=0 line status=0 folders=()
  JOBS="${JOBS:-1}" TOTAL="${#RUNS[@]}" GIVEN="" MPS="" PROGRESS="" CLEAR=""
  [[ -f "$ROOT/scripts/run_$RECIPE.sh" ]] ||
    fail "RECIPE=$RECIPE: there is no scripts/run_$RECIPE.sh"
  [[ "$JOBS" =~ ^[1-9][0-9]*$ ]] || fail "JOBS=$JOBS: not a number of runs at once"
  NOTES="$(mktemp -d)"
  trap 'stop_progress; stop_mps; rm -rf "$NOTES"' EXIT
  trap interrupted INT  # also where a run ends with another code, as torchrun's do
  DATA="$(data_dir ${DATA:+--data_dir "$DATA"} "$@")"
  (($# == 0)) || GIVEN="$(printf '%q ' "$@")"
  GPUS_HERE="${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader \
    2> /dev/null | grep '^[0-9]' | paste -s -d , - || true)}"
  [[ ! -t 1 ]] || CLEAR=$'\r\e[K'  # takes the line of the progress away
  if [[ "$RECIPE" == minilm ]]; then ENCODER="${ENCODER:-$(minilm)}"; fi # once, not once a run
  mkdir -p "$OUT"
  for line in "${RUNS[@]}"; do
    eval "set -- $line"
    folders+=("$OUT/$1-seed$2")
    [[ -f "$OUT/$1-seed$2/results.json" ]] || to_do=$((to_do + 1))
  done
  echo "$TOTAL runs, $to_do to do; a run's output goes to $OUT/NAME-seedN.log"
  if ((to_do)); then
    start_mps
    start_progress "${folders[@]}"
  fi
  export ROOT PYTHON OUT DATA RECIPE ENCODER="${ENCODER:-}" GIVEN TOTAL JOBS GPUS_HERE NOTES CLEAR
  export -f run_one test_f1
  for line in "${RUNS[@]}"; do printf '%s\0' "$((k += 1)) $line"; done |
    xargs -0 -n 1 -P "$JOBS" bash -c 'run_one "$1"' _ || status=$?
  [[ ! -e "$NOTES/interrupted" ]] || interrupted
  stop_progress
  stop_mps
  status=0
  "$PYTHON" "$ROOT/report.py" --runs "$OUT" --out "$OUT/report" --data_dir "$DATA" || status=$?
  if [[ -f "$NOTES/failed" ]]; then
    echo "failed: $(sort "$NOTES/failed" | tr '\n' ' ' | sed 's/ $//')" >&2
    exit 1
  fi
  exit "$status"
}
