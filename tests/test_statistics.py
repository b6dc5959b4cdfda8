"""Threshold shift and intervals against slow code and known answers; --seeds, --tune_threshold."""

import math

import numpy as np
import pytest
import test_train
import torch
from conftest import read
from test_evaluation import f1_of

import train
from engine.scoring import best_evidence_threshold, best_shift, shift_curve, to_official
from evaluation import count_patterns, evaluate, gold_facts
from inputs.files import InputError, relation_ids
from losses import decode, margins
from reporting.statistics import (
    compare,
    drawn_documents,
    pooled_variance,
    resampled_scores,
    student,
)


def counts_of(correct):
    """Documents with one prediction and one fact each, of one relation: F1 is the mean of
    `correct`."""
    correct = np.asarray(correct)[..., None]
    ones = np.ones_like(correct)
    return np.stack([correct, ones, ones, 0 * ones], axis=-1)


def compared(first, second, **more):
    """`compare` of F1, of runs [seeds, documents, ...] of counts."""
    drawn = [[resampled_scores(x) for x in side] for side in (first, second)]
    return compare(*drawn, len(first[0]), **more)


def test_an_interval_over_documents_is_that_of_normal_theory():
    rng = np.random.default_rng(1)
    first, second = rng.random((2, 1, 2000)) < [[[0.53]], [[0.5]]]
    found = compared(counts_of(first.astype(int)), counts_of(second.astype(int)))["f1"]
    (difference,) = 100 * (first.astype(float) - second)  # per document, of one seed
    error = difference.std() / math.sqrt(2000)
    assert found["difference"] == pytest.approx(difference.mean())
    assert found["documents"] == pytest.approx(error, rel=0.02)
    assert found["low"] == pytest.approx(difference.mean() - 1.96 * error, abs=0.1 * error)
    assert found["high"] == pytest.approx(difference.mean() + 1.96 * error, abs=0.1 * error)
    p = math.erfc(abs(difference.mean()) / error / math.sqrt(2))
    assert 0.001 < p < 0.5 and found["p"] == pytest.approx(p, rel=0.1)


def test_equal_runs_do_not_differ():
    same = compared(counts_of([[1, 0, 1]]), counts_of([[1, 0, 1]]))
    expected = {"difference": 0, "low": 0, "high": 0, "p": 1, "documents": 0}
    assert same["f1"] == same["macro_f1"] == pytest.approx(expected)
    sure = compared(counts_of([[1, 1]]), counts_of([[0, 0]]))["f1"]
    assert (sure["low"], sure["high"]) == (100, 100) and sure["p"] < 1e-6


def test_the_scores_of_resampled_documents():
    """Three relations, of which one is in one document alone: every draw against loops."""
    rng = np.random.default_rng(7)
    counts = np.zeros((3, 3, 4), dtype=int)  # documents, relations
    counts[..., 2] = gold = np.array([[5, 7, 0], [3, 6, 0], [9, 4, 2]])
    counts[..., 1] = rng.integers(2, 8, (3, 3))
    counts[..., 0] = rng.integers(0, np.minimum(counts[..., 1], gold) + 1)
    counts[..., 3] = rng.integers(0, counts[..., 0] + 1)

    def slow_scores(total):
        correct, predicted, gold, known = total.sum(0).tolist()
        precision = correct / predicted, (correct - known) / (predicted - known + 1e-5)
        each = [f1_of(x[0] / x[1], x[0] / x[2]) for x in total.tolist() if x[2]]
        return [*(f1_of(x, correct / gold) for x in precision), sum(each) / len(each)]

    drawn = drawn_documents(3, 700)
    assert (drawn_documents(50, 1)[0] == 1).all()
    assert (drawn.sum(1) == 3).all() and len(drawn) == 701
    found = resampled_scores(counts, 700)
    for scores, weights in zip(found, drawn, strict=True):
        assert scores == pytest.approx(slow_scores((counts * weights[:, None, None]).sum(0)))
    chosen = [
        tuple(x) for x in drawn[1:].tolist()
    ]  # one of each in 2 of 9 cases, one alone in 1 / 9
    assert chosen.count((1, 1, 1)) / 700 == pytest.approx(2 / 9, abs=0.05)
    assert sum(max(x) == 3 for x in chosen) / 700 == pytest.approx(1 / 9, abs=0.04)


def test_variance_of_seeds_and_documents():
    """Satterthwaite's sum, by hand, from scores whose variances are known."""
    seeds = np.array([[0.60, 0.62, 0.67], [0.59, 0.58, 0.60]])
    over_documents = np.array([-0.02, 0.02, 0.0, 0.01, -0.01])  # of the resamples, of every run
    noise = np.stack([over_documents, 0 * over_documents])
    runs = np.concatenate([seeds[..., None], seeds[..., None] + noise[:, None]], axis=-1)[..., None]
    documents = 0.001 / 4, 9
    spread = [np.var(x, ddof=1) / 3 for x in (seeds[0] - seeds[1], *seeds)]
    limits = {2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582, 9: 2.262157, 20: 2.085963}
    limits |= {1: 12.706205, 499: 1.964729}
    for freedom, limit in limits.items():  # of the tables
        assert student(limit, freedom) == pytest.approx((0.05, limit), rel=1e-4)
    assert student(0, 3)[0] == pytest.approx(1) and student(31.8205, 1)[0] == pytest.approx(
        0.02, rel=1e-4
    )
    pooled = pooled_variance([x[:, None] for x in (*seeds, np.array([0.5]))])
    assert pooled[1] == 4 and pooled[0] == pytest.approx(1.5 * (spread[1] + spread[2]))
    cases = {True: [(spread[0], 2)], False: [(x, 2) for x in spread[1:]]}
    for paired, parts in cases.items():
        found = compare(*runs, 10, ["x"], paired, pooled)["x"]
        shared = {"own": parts, "pooled": [(2 * pooled[0][0] / 3, 4)]}
        for kind, of_seeds in shared.items():
            variance = sum(x for x, _ in [documents, *of_seeds])
            freedom = variance**2 / sum(x**2 / n for x, n in [documents, *of_seeds])
            half = 100 * student(0, freedom)[1] * math.sqrt(variance)
            middle = 100 * (seeds[0].mean() - seeds[1].mean())
            low_high = found["pooled"] if kind == "pooled" else [found["low"], found["high"]]
            assert low_high == pytest.approx([middle - half, middle + half]), (paired, kind)
        assert found["documents"] == pytest.approx(100 * math.sqrt(documents[0]))


def slow_predictions(scores, loss_type, num_labels, shift):
    """Multi-hot decoding of one pair, by sorting."""
    threshold = 0 if loss_type == "balance_softmax" else scores[0]
    rivals = scores if loss_type == "balance_softmax" else scores[1:]
    limit = sorted(rivals)[-num_labels] if num_labels > 0 else -math.inf
    return [
        r for r in range(1, len(scores)) if scores[r] - threshold > shift and scores[r] >= limit
    ]


@pytest.mark.parametrize("loss_type", ["ATL", "balance_softmax"])
@pytest.mark.parametrize("num_labels", [-1, 1, 4])
@pytest.mark.parametrize("ties", [False, True])
def test_shift_against_brute_force(loss_type, num_labels, ties):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(12, 9)).astype(np.float32) * 3
        logits = np.round(logits) if ties else logits
        labels = rng.random(logits.shape) < 0.15
        gold = int(labels[:, 1:].sum()) + 3  # facts that are no pair of the model
        above = margins(torch.from_numpy(logits), loss_type, num_labels).numpy()
        scores = logits.tolist()
        levels = {s[r] - (0 if loss_type == "balance_softmax" else s[0])
                  for s in scores for r in range(1, 9)}  # fmt: skip

        def slow_f1(shift, scores=scores, labels=labels, gold=gold):
            found = [slow_predictions(s, loss_type, num_labels, shift) for s in scores]
            right = sum(labels[i, r] for i, x in enumerate(found) for r in x)
            return 2 * right / (sum(map(len, found)) + gold)

        tried = {x + step for x in levels for step in (-1e-4, 0, 1e-4)} | {0.0}
        by_shift = {shift: slow_f1(shift) for shift in tried}
        shift = best_shift(above, labels, gold)
        predicted = decode(torch.from_numpy(logits), loss_type, num_labels, shift)[:, 1:] > 0
        right = int((predicted.numpy() & labels[:, 1:]).sum())
        assert 2 * right / (int(predicted.sum()) + gold) == pytest.approx(max(by_shift.values()))
        assert slow_f1(shift) == pytest.approx(max(by_shift.values()))
        if by_shift[0.0] == pytest.approx(max(by_shift.values())):
            assert shift == 0
        sizes = shift_curve(above, labels)[2]
        assert (
            len(sizes) == 1 + len(np.unique(above[above > -np.inf]))
            and sizes[-1] == (above > -np.inf).sum()
        )


def test_shift_between_neighbouring_numbers_and_of_nothing():
    """No number lies between two margins that are neighbours: the shift is the lower one."""
    one = np.float32(1)
    for _ in range(2):  # their middle is rounded up in one case, down in the other
        one = np.nextafter(one, np.float32(2))
        more = np.nextafter(one, np.float32(2))
        above = np.array([[-np.inf, one, more]], dtype=np.float32)
        shift = best_shift(above, np.array([[False, False, True]]), 1)
        assert one <= shift < more and isinstance(shift, float)
    assert best_shift(np.full((3, 4), -np.inf), np.zeros((3, 4)), 5) == 0
    assert best_shift(np.zeros((0, 4)), np.zeros((0, 4)), 0) == 0


def test_the_evidence_threshold_parts_neighbouring_shares():
    feature = {"title": "a", "entity_pos": [[], []]}
    predicted = torch.tensor([[0, 1], [1, 0]])  # a relation of the first of two pairs
    gold, low = {("a", 0, 1, "r"): {1}}, torch.tensor(0.3)
    for _ in range(2):  # their middle is rounded up in one case, down in the other
        high = torch.nextafter(low, torch.tensor(1.0))
        shares = [torch.stack([low, high]).expand(2, 2)]
        options = [feature], {"Na": 0, "r": 1}, shares
        threshold = best_evidence_threshold(predicted, *options, gold)
        (fact,) = to_official(predicted, *options, threshold)
        assert fact["evidence"] == [1]
        low = high


def test_seeds_logits_and_tuned_threshold_of_a_run(demo, tmp_path):
    """--seeds makes the runs that --seed makes; the tuned scores are those of the kept logits."""
    more = ["--loss_type", "SAT", "--num_train_epochs", "1", "--save_logits", "--tune_threshold"]
    train.main(test_train.flags(demo, tmp_path / "runs", *more, "--seeds", "5", "1"))
    train.main(test_train.flags(demo, tmp_path / "one", *more[:4], "--seed", "1"))
    folder = tmp_path / "runs/seed1"
    first, alone = read(folder / "results.json"), read(tmp_path / "one/results.json")
    assert first["test"] == alone["test"] and first["dev"] == alone["dev"]
    assert test_train.without_times(folder) == test_train.without_times(tmp_path / "one")
    assert first["args"]["seed"] == 1 and "seeds" not in first["args"]
    assert test_train.without_times(tmp_path / "runs/seed5") != test_train.without_times(folder)

    facts = read(demo / "train_revised.json")
    for split in ("dev", "test"):
        arrays, truth = (
            np.load(folder / f"{split}_logits.npz"),
            read(demo / f"{split}_revised.json"),
        )
        logits, labels = torch.from_numpy(arrays["logits"]), arrays["labels"]
        shift = first["tuned"]["shift"]
        if split == "dev":
            assert shift == best_shift(margins(logits).numpy(), labels, len(gold_facts(truth)))
        features = [{"title": d["title"], "entity_pos": d["vertexSet"]} for d in truth]
        submission = to_official(decode(logits, "SAT", 4, shift), features, relation_ids())
        kept = read(folder / f"{split}_tuned.json")
        assert [x | {"evidence": []} for x in kept] == [x | {"evidence": []} for x in submission]
        expected = evaluate(submission, truth, facts)
        found = first["tuned"][split]
        del expected["evi_f1"]  # of shares, which are not kept
        assert {k: found[k] for k in expected} == pytest.approx(expected)
        assert found["f1"] >= first[split]["f1"] or split == "test"
        own = [arrays[name] for name in ("logits", "labels", "threshold")]
        related = labels[:, 1:].any(1)
        for shown, by in (first[split], 0.0), (found, shift):
            patterns = count_patterns(*own, by)
            assert {k: shown[k] for k in patterns} == pytest.approx(patterns)
            above = [sum(s > row[0] + by for s in row[1:]) for row in own[0][related].tolist()]
            assert shown["above_threshold"] == pytest.approx(sum(above) / len(above))

    where = ["--data_dir", str(demo), "--device", "cpu", "--tune_threshold"]
    where += ["--load_path", str(folder), "--output_dir", str(tmp_path / "again")]
    train.main(where)
    assert read(tmp_path / "again/results.json")["tuned"] == first["tuned"]


@pytest.mark.parametrize("more,message", [
    (["--seeds", "1", "1"], "--seeds: a seed is given twice"),
    (["--seeds", "1", "--load_path", "runs"], "--seeds: not with --load_path"),
])  # fmt: skip
def test_bad_seeds(tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        train.main([*more, "--output_dir", str(tmp_path)])
