"""What bf16 changes in the scores: finished runs in bf16 beside the same in fp32, seed by seed.

    for seed in 1 5 66; do for precision in bf16 fp32; do
        bash scripts/run_minilm.sh --data_dir redocred-mini --seed $seed --precision $precision \\
            --tune_threshold --output_dir runs/$precision-seed$seed
    done; done
    python bench/precision.py runs --figure curves.png

For each seed test F1 in both and the difference; beneath, mean and standard deviation over seeds.
The largest difference between the training losses of an evaluation, and the curves of both.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from reporting import figures

PRECISIONS = "bf16", "fp32"
SCORES = {"test F1": ("test", "f1"), "test F1, shifted": ("tuned", "test", "f1")}
SCORES |= {"Ign F1": ("test", "ign_f1"), "dev F1": ("dev", "f1")}


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
        lines = path.with_name("metrics.jsonl").read_text(encoding="utf-8").splitlines()
        curves[key] = [json.loads(line) for line in lines]
    seeds = sorted({seed for _, seed in results})
    print("| seed | score | bf16 | fp32 | difference |\n| --- | --- | --- | --- | --- |")
    for name, place in SCORES.items():
        found = {key: 100 * score(run, place) for key, run in results.items()}
        both = [[found[precision, seed] for precision in PRECISIONS] for seed in seeds]
        for seed, (half, full) in zip(seeds, both, strict=True):
            print(f"| {seed} | {name} | {half:.2f} | {full:.2f} | {half - full:+.2f} |")
        cells = [summary(x) for x in zip(*both, strict=True)]
        differences = summary([half - full for half, full in both], "+.2f")
        print(f"| all | {name} | {' | '.join(cells)} | {differences} |")
    pairs = [zip(curves["bf16", seed], curves["fp32", seed], strict=True) for seed in seeds]
    largest = max(abs(a["loss"] / b["loss"] - 1) for pair in pairs for a, b in pair)
    between = max(
        abs(a["loss"] / b["loss"] - 1)
        for seed in seeds[1:]
        for a, b in zip(curves["fp32", seeds[0]], curves["fp32", seed], strict=True)
    )
    print(f"\ntraining loss: bf16 and fp32 differ by {100 * largest:.1f} % at most, "
          f"two seeds in fp32 by {100 * between:.1f} %")  # fmt: skip
    if args.figure:
        rows = {x: [curves[x, seed] for seed in seeds] for x in PRECISIONS}
        figure = figures.training_curves(rows, figures.line_styles(PRECISIONS))
        figure.savefig(args.figure, dpi=110)


def score(run, place):
    for name in place:
        run = run[name]
    return run


def summary(values, form=".2f"):
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    main()
