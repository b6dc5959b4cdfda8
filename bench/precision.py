"""What bf16 changes in the scores: finished runs in bf16 beside the same in fp32, seed by seed.

    for seed in 1 5 66; do for precision in bf16 fp32; do
        bash scripts/run_minilm.sh --data_dir redocred-mini --seed $seed --precision $precision \\
            --tune_threshold --output_dir runs/$precision-seed$seed
    done; done
    python bench/precision.py runs --figure curves.png

Test scores of every seed in both, mean and standard deviation; how far the training losses of an
evaluation lie apart; the curves of both.
"""

import argparse
import json
import statistics
import sys
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from reporting import figures
from reporting.runs import read_curve

PRECISIONS = "bf16", "fp32"
SCORES = {"F1": ("test", "f1"), "Ign F1": ("test", "ign_f1"), "shifted F1": ("tuned", "test", "f1")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of run folders that differ in these alone")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    results, curves = {}, {}
    for path in sorted(args.runs.glob("*/results.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        key = run["args"]["precision"], run["args"]["seed"]
        results[key] = run
        curves[key] = read_curve(path.parent)
    seeds = sorted(x for precision, x in results if precision == "bf16" and ("fp32", x) in results)
    if len(seeds) < 2:
        parser.error(f"{args.runs}: fewer than two seeds have runs in both precisions")
    columns = [(name, precision) for name in SCORES for precision in PRECISIONS]
    print("| seed |", " | ".join(f"{name}, {precision}" for name, precision in columns), "|")
    print("| --- " * (1 + len(columns)) + "|")
    cells = []
    for name, precision in columns:
        values = [100 * score(results[precision, seed], SCORES[name]) for seed in seeds]
        spread = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        cells.append([f"{x:.2f}" for x in values] + [spread])
    for title, row in zip([*seeds, "all"], zip(*cells, strict=True), strict=True):
        print("|", " | ".join([str(title), *row]), "|")
    of_precision = [apart(curves["bf16", seed], curves["fp32", seed]) for seed in seeds]
    of_seed = [apart(*(curves["fp32", x] for x in two)) for two in combinations(seeds, 2)]
    print(f"training losses lie apart by at most {100 * max(of_precision):.1f} % in the two "
          f"precisions, {100 * max(of_seed):.1f} % in fp32 with two seeds")  # fmt: skip
    if args.figure:
        rows = {x: [curves[x, seed] for seed in seeds] for x in PRECISIONS}
        figure = figures.training_curves(rows, figures.line_styles(PRECISIONS))
        figure.savefig(args.figure, dpi=110)


def score(run, place):
    for name in place:
        run = run[name]
    return run


def apart(first, second):
    """The largest relative difference of the losses of two curves."""
    losses = [[record["loss"] for record in curve] for curve in (first, second)]
    return max(abs(a - b) / min(a, b) for a, b in zip(*losses, strict=True))


if __name__ == "__main__":
    main()
