# Sourced by run_table2.sh and run_table3.sh: many runs of one recipe, one after the other, then the
# report. A finished run is not run again and an interrupted one goes on, so everything can be stopped
# and started anew; a failed one is named and does not stop the others.
#
# The callers' variables: RECIPE (bert, roberta, minilm: which of scripts/run_*.sh to run), OUT (the
# folder of the run folders), SEEDS, ENCODER (default: the recipe's), DATA (default: as the recipe).

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
SEEDS="${SEEDS:-1 5 42 66 233}"

# The runs, as "NAME SEED FLAGS"; add_run NAME SEED FLAG... adds one.
RUNS=()
add_run() { RUNS+=("$*"); }

fail() {
  echo "error: $*" >&2
  exit 2
}

test_f1() {
  "$PYTHON" -c 'import json, sys
print(f"test F1 {100 * json.load(open(sys.argv[1]))['\''test'\'']['\''f1'\'']:.2f}")' "$1" 2> /dev/null ||
    echo "no test F1"
}

duration() {  # of seconds
  if (($1 < 120)); then echo "$1 s"; elif (($1 < 7200)); then echo "$(($1 / 60)) min"; else
    echo "$(($1 / 3600)) h $(($1 % 3600 / 60)) min"
  fi
}

# run_all FLAG...: the runs that are not finished; the flags go to each. Then the report, to
# OUT/report. Ends the script: exit code 1 if a run failed.
run_all() {
  local recipe="$ROOT/scripts/run_$RECIPE.sh" k=0 left=0 succeeded=0 spent=0 failed=""
  local line name seed flags run again start seconds status
  [[ -f "$recipe" ]] || fail "RECIPE=$RECIPE: there is no scripts/run_$RECIPE.sh"
  trap 'exit 130' INT  # also where a run ends with another code, as torchrun's do
  DATA="$(data_dir ${DATA:+--data_dir "$DATA"} "$@")"
  mkdir -p "$OUT"
  for line in "${RUNS[@]}"; do
    read -r name seed flags <<< "$line"
    [[ -f "$OUT/$name-seed$seed/results.json" ]] || left=$((left + 1))
  done
  echo "${#RUNS[@]} runs, $left to do; a run's output goes to $OUT/NAME-seedN.log"
  for line in "${RUNS[@]}"; do
    read -r name seed flags <<< "$line"
    run="$OUT/$name-seed$seed" k=$((k + 1))
    line="[$k of ${#RUNS[@]}] $name seed $seed"
    if [[ -f "$run/results.json" ]]; then
      echo "$line: $(test_f1 "$run/results.json"), finished before"
      continue
    fi
    start=$SECONDS status=0
    # shellcheck disable=SC2086  # the flags of a run are several words
    bash "$recipe" --data_dir "$DATA" ${ENCODER:+--model_name_or_path "$ENCODER"} "$@" $flags \
      --seed "$seed" --output_dir "$run" --resume > "$run.log" 2>&1 || status=$?
    seconds=$((SECONDS - start)) left=$((left - 1))
    ((status != 130)) || { echo "$line: interrupted" >&2; exit 130; }
    if ((status == 0)); then
      succeeded=$((succeeded + 1)) spent=$((spent + seconds))
      line+=": $(test_f1 "$run/results.json"), $seconds s"
    else
      failed+=" $name-seed$seed"
      line+=": failed after $seconds s: "
      line+="$({ grep '^error:' "$run.log" || cat "$run.log"; } | tail -n 1) ($run.log)"
    fi
    ((left == 0 || succeeded == 0)) ||
      line+="; about $(duration $((left * spent / succeeded))) left"
    echo "$line"
  done
  status=0
  "$PYTHON" "$ROOT/report.py" --runs "$OUT" --out "$OUT/report" --data_dir "$DATA" || status=$?
  [[ -z "$failed" ]] || { echo "failed:$failed" >&2; exit 1; }
  exit "$status"
}
