"""Compares two submissions: F1, Ign F1 and macro F1 with intervals, and F1 of every
relation. With several seeds each:

    python scripts/compare.py --truth dataset/redocred/test_revised.json \
        --pred runs/a/seed1/predictions.json runs/a/seed5/predictions.json \
        --against runs/b/seed1/predictions.json runs/b/seed5/predictions.json

Without --against, shows the scores of --pred alone. The files are paired in their order. low, high:
the 95 % interval of the difference, over documents and seeds (reporting/statistics.py).
"""

import sys
from pathlib import Path

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parent.parent))

from evaluation import f1_score, known_facts
from inputs.documents import read_documents
from inputs.files import (
    META_DIR,
    REL2ID_FILE,
    InputError,
    OneLineParser,
    read_json,
    relation_ids,
    run_main,
    write_json,
)
from reporting.statistics import (
    COMPARED_SCORES,
    compare,
    read_counts,
    resampled_scores,
    scores_of_counts,
)


def relation_rows(rel2id, *sides):
    """The table of relations with facts, the most frequent first: property, name, number of facts,
    and the mean F1 in percent of each side. sides: `read_counts` of every seed, stacked:
    [seeds, documents, relations, 4]."""
    names = read_json(META_DIR / "rel_info.json")
    totals = [side.sum(1) for side in sides]  # [seeds, relations, 4]
    f1 = [100 * f1_score(*np.moveaxis(total[..., :3], -1, 0)).mean(0) for total in totals]
    rows = [
        [relation, names.get(relation, relation), int(facts), *(float(x[i]) for x in f1)]
        for relation, i in rel2id.items()
        if (facts := totals[0][0, i, 2])
    ]
    return sorted(rows, key=lambda row: -row[2])


def main(argv=None):
    parser = OneLineParser(description="Two submissions of the same documents compared.")
    parser.add_argument("--pred", required=True, nargs="+", help="submissions, one of each seed")
    parser.add_argument(
        "--against", nargs="+", default=[], help="as many submissions to compare with"
    )
    parser.add_argument("--truth", required=True, help="documents with labels")
    parser.add_argument("--train", help="training documents, whose facts Ign F1 leaves out")
    parser.add_argument("--rel2id", type=Path, default=REL2ID_FILE, help="property -> class id")
    parser.add_argument("--output", help="write all numbers as JSON to this file")
    args = parser.parse_args(argv)
    if args.against and len(args.against) != len(args.pred):
        raise InputError(f"--against: {len(args.against)} files, --pred has {len(args.pred)}")
    rel2id = relation_ids(args.rel2id)
    truth = read_documents(args.truth, rel2id)
    facts = known_facts(args.train, truth, rel2id)[0] if args.train else ()
    sides = [
        np.stack([read_counts(path, truth, rel2id, facts) for path in paths])
        for paths in (args.pred, args.against)
        if paths
    ]
    names = ["pred", "against"][: len(sides)]
    means = [100 * scores_of_counts(side.sum(1)).mean(0) for side in sides]  # [scores] each
    scores = dict(zip(COMPARED_SCORES, map(list, zip(*means, strict=True)), strict=True))
    columns = list(names)
    if args.against:
        columns += ["difference", "low", "high", "p"]
        drawn = [list(map(resampled_scores, side)) for side in sides]
        for name, found in compare(*drawn, len(truth)).items():
            scores[name] += [found[x] for x in columns[2:]]
    relations = relation_rows(rel2id, *sides)
    table = [[name, *values] for name, values in scores.items()]
    if args.output:
        content = {"scores": {x: dict(zip(columns, row, strict=True)) for x, *row in table}}
        keys = ["name", "facts", *names]
        content["relations"] = {x: dict(zip(keys, row, strict=True)) for x, *row in relations}
        write_json(args.output, content)
    print(tabulate(table, ["", *columns], "github", floatfmt=[".2f"] * 6 + [".4f"]))
    print("\n" + tabulate(relations, ["relation", "", "facts", *names], "github", floatfmt=".2f"))
    if not args.train:
        print("\nno --train file: Ign F1 leaves out nothing")


if __name__ == "__main__":
    run_main(main)
