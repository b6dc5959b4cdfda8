"""Evidence: sentences of a batch, the evidence loss, evidence in predictions, fusion."""

import json
import math
import random
import shutil
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import flags, make_document, read, small_model

import evaluation
import predict
import train
from engine import fusion
from engine.fit import train_step
from engine.scoring import best_fusion_threshold
from inputs.documents import read_documents
from inputs.files import InputError
from losses import evidence_loss, get_loss
from predict import RelationExtractor
from prepro import docred_features, pairs_of
from utils import collate

TOKENS = ([2], [3], 0)


def document_of(seed=0, num_entities=5, num_sentences=4, **more):
    """A made-up document with evidence: none, one or several sentences, some named twice."""
    document = make_document(random.Random(seed), num_entities, num_sentences, title=f"Doc {seed}")
    rng = random.Random(seed)
    related = {(x["h"], x["t"], x["r"]) for x in document["labels"]}
    for r in ("P17", "P131", "P27"):  # pairs of several relations
        if (0, 1, r) not in related:
            document["labels"].append({"h": 0, "t": 1, "r": r})
    for x in document["labels"]:
        x["evidence"] = [rng.randrange(num_sentences) for _ in range(rng.choice((0, 1, 3)))]
    return document | more


def slow_evidence(document):
    """(h, t) -> sentence -> how many relations of the pair name it."""
    counts = {}
    for x in document["labels"]:
        for sentence in set(x["evidence"]):
            of_pair = counts.setdefault((x["h"], x["t"]), {})
            of_pair[sentence] = of_pair.get(sentence, 0) + 1
    return counts


def test_batch_has_sentences_and_evidence(tokenizer):
    """Also where a document is cut, and of documents of unequal numbers of sentences."""
    documents = [document_of(1), document_of(2, num_sentences=7, candidates=[[0, 1], [3, 2]])]
    cut = document_of(3, num_sentences=30)
    features = docred_features([*documents, cut], tokenizer, max_seq_length=150)
    batch = collate(features, TOKENS, sentences=True, evidence=True)
    assert batch["sentences"].shape[2] == batch["evidence"].shape[1] == 30
    for i, feature in enumerate(features):
        length, bounds = len(feature["input_ids"]), feature["sentence_bounds"]
        for token, s in product(range(batch["sentences"].shape[1]), range(30)):
            inside = s + 1 < len(bounds) and bounds[s] <= token - 1 < bounds[s + 1]
            inside = inside and token < length - 1  # not [SEP]
            assert batch["sentences"][i, token, s] == inside
    expected = [slow_evidence(x) for x in [*documents, cut]]
    for (doc, head, tail), counts in zip(batch["pairs"].tolist(), batch["evidence"], strict=True):
        found = {s: c for s, c in enumerate(counts.tolist()) if c}
        assert found == expected[doc].get((head, tail), {})
    assert batch["evidence"].max() > 1  # two relations of one pair name a sentence


@pytest.mark.parametrize("backbone", ["atlop", "dreeam"])
def test_shares_are_the_same_alone_and_in_a_batch(tokenizer, backbone):
    """Over several windows, too; they sum to at most 1."""
    model = small_model(backbone=backbone, max_position_embeddings=130).double()
    documents = [document_of(1), document_of(2, 7, 12), document_of(3, 3, 2)]
    features = docred_features(documents, tokenizer)
    assert max(len(x["input_ids"]) for x in features) > 128 > len(features[2]["input_ids"])

    @torch.no_grad()
    def shares_of(chosen):
        batch = collate(chosen, TOKENS, size=128, sentences=True)
        del batch["labels"]
        shares = model(**batch)[1]
        return shares.split([len(pairs_of(x)) for x in chosen])

    together = shares_of(features)
    for feature, shares in zip(features, together, strict=True):
        (alone,) = shares_of([feature])
        assert torch.allclose(shares[:, : alone.shape[1]], alone, atol=1e-9)
        assert (shares[:, alone.shape[1] :] == 0).all()
        assert (shares.sum(1) < 1 + 1e-9).all() and shares.max() > 0.1


def test_an_encoder_of_fewer_layers_than_dreeam_averages(tokenizer):
    """All that it has are averaged, the CPU's way and a GPU's."""
    model = small_model(backbone="dreeam", num_hidden_layers=2).double()
    batch = collate(docred_features([document_of(1)], tokenizer), TOKENS, sentences=True)
    del batch["labels"]
    with torch.no_grad():
        ours = model(**batch)
        model.cpu_kernels = False
        theirs = model(**batch)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_documents_without_evidence_teach_none(demo, tmp_path):
    documents = read(demo / "train_revised.json")
    for x in [x for document in documents for x in document["labels"]]:
        x["evidence"] = []
    (tmp_path / "train.json").write_text(json.dumps(documents))
    more = ["--evidence_weight", "0.1", "--train_file", str(tmp_path / "train.json")]
    with pytest.raises(InputError, match="--evidence_weight: .*train.json names no evidence"):
        train.main(flags(demo, tmp_path / "run", *more))


def test_evidence_loss_against_slow_version():
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(6, 4, generator=generator, dtype=torch.float64) / 4
    counts = torch.tensor([[1, 0, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]] + [[0] * 4] * 2)
    expected = 0.0
    for p, row in zip(shares.tolist(), counts.tolist(), strict=True):
        for share, count in zip(p, row, strict=True):
            if count:
                v = count / sum(row)
                expected += v * (math.log(v) - math.log(share))
    counts = counts.double()
    assert evidence_loss(shares, counts).item() == pytest.approx(expected, rel=1e-6)
    cut = torch.zeros(1, 4, requires_grad=True)
    loss = evidence_loss(cut, counts[:1])
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-30), rel=1e-6) and cut.grad.isfinite().all()
    assert evidence_loss(shares[:0], counts[:0]).item() == 0


def test_a_step_of_two_batches_is_a_step_of_one(tokenizer):
    """The evidence loss is the mean over the pairs with a relation of the whole group."""
    features = docred_features([document_of(i) for i in range(4)], tokenizer)
    make = dict(sentences=True, evidence=True)
    losses = []
    for groups in ([features], [features[:1], features[1:]]):
        model = small_model(backbone="dreeam").train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        batches = [collate(group, TOKENS, **make) for group in groups]
        labels = torch.cat([batch["labels"] for batch in batches])
        loss = train_step(
            model,
            batches,
            loss_function=get_loss("ATL"),
            optimizer=optimizer,
            schedule=schedule,
            scaler=scaler,
            autocast=torch.enable_grad,
            max_grad_norm=1e9,
            weights={"labels": 1.0, "evidence": 0.5},
            counts={"labels": len(labels), "evidence": (~labels[:, 0]).sum().item()},
        )
        losses.append((loss.item(), model.head_extractor.weight.detach().clone()))
        with torch.no_grad():
            alone = small_model(backbone="dreeam").train()
            batch = collate(features, TOKENS, **make)
            labels, counts = batch.pop("labels"), batch.pop("evidence")
            logits, shares = alone(**batch)
            related = (~labels[:, 0]).sum()
            expected = get_loss("ATL")(logits, labels)
            expected += 0.5 * evidence_loss(shares, counts) / related
    assert losses[0][0] == pytest.approx(expected.item(), rel=1e-5)
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert torch.allclose(losses[0][1], losses[1][1], atol=1e-5)


# --- Fusion -----------------------------------------------------------------------------------


def test_pseudo_documents_by_hand():
    def mention(sentence, name="x"):
        return {"name": name, "sent_id": sentence, "pos": [0, 1]}

    document = {
        "title": "T",
        "sents": [["a"], ["b"], ["c"], ["d"]],
        "vertexSet": [[mention(0), mention(3)], [mention(1)], [mention(2)]],
        "candidates": [[0, 1], [1, 0], [0, 2], [2, 1]],
    }
    pairs = np.array(document["candidates"])
    shares = [[0.5, 0.3, 0, 0], [0.3, 0.5, 0, 0], [0, 0.21, 0, 0.4], [0.2, 0.2, 0.2, 0.2]]
    parts = fusion.pseudo_documents(document, pairs, shares, 0.2)
    # the second pair has the first one's sentences; the fourth no evidence; 2 is added to the third
    assert [part["sents"] for part, _ in parts] == [[["a"], ["b"]], [["b"], ["c"], ["d"]]]
    assert [entities for _, entities in parts] == [[0, 1], [0, 1, 2]]
    assert parts[0][0]["candidates"] == [[0, 1], [1, 0]]
    assert parts[1][0]["vertexSet"][0] == [mention(2)]  # sentence 3 is its third
    assert parts[1][0]["candidates"] == document["candidates"]


@pytest.mark.parametrize("loss_type", ["ATL", "balance_softmax"])
def test_scores_of_triples_against_slow_version(loss_type):
    logits = torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    pairs = np.array([[i, i + 1] for i in range(30)])
    found = fusion.triple_scores(logits, pairs, loss_type)
    expected = {}
    for s, (h, t) in zip(logits.tolist(), pairs.tolist(), strict=True):
        top = sorted(range(8), key=lambda r: -s[r])[:4]
        threshold = s[0] if 0 in top else s[top[-1]] - 1
        if loss_type == "balance_softmax":
            threshold = 0.0
        expected |= {(h, t, r): s[r] - threshold for r in top if r != 0}
    assert found == pytest.approx(expected)


def slow_fusion(whole, parts):
    certain, uncertain = set(), {}
    for triple in {*whole, *(x for part in parts for x in part)}:
        pseudo = [part[triple] for part in parts if triple in part]
        if triple in whole and pseudo:
            if whole[triple] > 0 and max(pseudo) > 0:
                certain.add(triple)
            else:
                uncertain[triple] = whole[triple] + max(pseudo)
        else:
            uncertain[triple] = (whole[triple] if triple in whole else max(pseudo)) - 10
    return certain, uncertain


def test_fuse_and_its_threshold_against_slow_versions():
    rng = random.Random(0)
    triples = [(h, t, r) for h in range(4) for t in range(4) for r in (1, 2) if h != t]
    fused, gold = [], []
    for _ in range(6):
        whole, *parts = ({x: rng.uniform(-8, 6) for x in rng.sample(triples, 12)} for _ in range(4))
        found = fusion.fuse(whole, parts)
        certain, uncertain = slow_fusion(whole, parts)
        assert set(found.certain) == certain and found.uncertain == pytest.approx(uncertain)
        fused.append(found)
        gold.append(set(rng.sample(triples, 6)))
    threshold = best_fusion_threshold(fused, gold)

    def f1(threshold):
        chosen = [set(fusion.select(x, threshold)) for x in fused]
        correct = sum(len(a & b) for a, b in zip(chosen, gold, strict=True))
        return 2 * correct / (sum(map(len, chosen)) + sum(map(len, gold)))

    scores = sorted(s for x in fused for s in x.uncertain.values())
    every = [scores[0] - 1, *((a + b) / 2 for a, b in zip(scores, scores[1:], strict=False))]
    assert f1(threshold) == pytest.approx(max(map(f1, [*every, scores[-1] + 1])))


@pytest.fixture(scope="module")
def with_evidence(demo, tmp_path_factory):
    """A run of DREEAM on documents with evidence, fused."""
    folder = tmp_path_factory.mktemp("evidence")
    for split in ("train", "dev", "test"):
        documents = read(demo / f"{split}_revised.json")
        for i, document in enumerate(documents):
            for k, x in enumerate(document["labels"]):
                mentions = document["vertexSet"][x["h"]]
                x["evidence"] = [m["sent_id"] for m in mentions] if (i + k) % 4 else []
        (folder / f"{split}_revised.json").write_text(json.dumps(documents))
    more = ["--backbone", "dreeam", "--evidence_weight", "0.5", "--tune_threshold", "--fusion"]
    with patch("engine.fit.train_step", wraps=train_step) as step:
        train.main(flags(demo, folder / "run", "--data_dir", str(folder), *more))
    weights = step.call_args.kwargs["weights"]
    assert (weights["labels"], weights["evidence"]) == (1, 0.5)
    return folder


def test_training_with_evidence(with_evidence):
    results = read(with_evidence / "run/results.json")
    truth = read_documents(with_evidence / "test_revised.json")
    facts = read_documents(with_evidence / "train_revised.json")
    submission = read(with_evidence / "run/predictions.json")
    scores = evaluation.evaluate(submission, truth, facts)
    assert {name: results["test"][name] for name in scores} == pytest.approx(scores)
    assert any(x["evidence"] for x in submission) and 0 < results["tuned"]["evidence_threshold"] < 1
    assert results["tuned"]["dev"]["evi_f1"] > 0
    losses = [json.loads(line)["loss"] for line in open(with_evidence / "run/metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_an_evidence_threshold_stays_where_no_evidence_is_named(demo, finished, tmp_path):
    documents = read(demo / "dev_revised.json")
    for x in (label for document in documents for label in document["labels"]):
        del x["evidence"]
    (tmp_path / "dev.json").write_text(json.dumps(documents))
    how = ["--data_dir", str(demo), "--dev_file", str(tmp_path / "dev.json"), "--test_file", ""]
    how += ["--load_path", str(finished), "--output_dir", str(tmp_path / "a"), "--device", "cpu"]
    train.main([*how, "--tune_threshold", "--evidence_threshold", "0.3"])
    assert read(tmp_path / "a/results.json")["tuned"]["evidence_threshold"] == 0.3


def test_predictions_name_the_evidence(with_evidence):
    extractor = RelationExtractor.from_pretrained(with_evidence / "run", device="cpu")
    truth = read_documents(with_evidence / "test_revised.json")
    expected = {
        (x["title"], x["h_idx"], x["t_idx"], x["r"]): x["evidence"]
        for x in read(with_evidence / "run/predictions.json")
    }
    found = {}
    for record in extractor(truth):
        for x in record["relations"]:
            key = record["title"], x["head"]["entity"], x["tail"]["entity"], x["relation"]
            found[key] = x["evidence"]
            shown = {s["sentence"] for s in x["sentences"]}
            assert len(x["evidence"]) > 3 or set(x["evidence"]) <= shown
    assert found == expected


def test_fusion_through_the_commands(with_evidence, tmp_path):
    results = read(with_evidence / "run/results.json")["fusion"]
    assert results["dev"]["pseudo_documents"] > 0
    fused = read(with_evidence / "run/test_fused.json")
    truth = read_documents(with_evidence / "test_revised.json")
    facts = read_documents(with_evidence / "train_revised.json")
    scores = evaluation.evaluate(fused, truth, facts)
    assert {name: results["test"][name] for name in scores} == pytest.approx(scores)
    assert results["threshold"] == read(with_evidence / "run/config.json")["fusion_threshold"]
    extractor = RelationExtractor.from_pretrained(
        with_evidence / "run", device="cpu", fusion=True, batch_size=3
    )
    found = {
        (record["title"], x["head"]["entity"], x["tail"]["entity"], x["relation"])
        for record in extractor(truth)
        for x in record["relations"]
    }
    assert found == {(x["title"], x["h_idx"], x["t_idx"], x["r"]) for x in fused}
    shutil.copytree(with_evidence / "run", tmp_path / "again")
    where = ["--data_dir", str(with_evidence), "--load_path", str(tmp_path / "again"), "--fusion"]
    train.main([*where, "--device", "cpu", "--output_dir", str(tmp_path / "scores")])
    again = read(tmp_path / "scores/results.json")["fusion"]
    for split in ("dev", "test"):
        assert again[split] | {"seconds": 0} == pytest.approx(results[split] | {"seconds": 0})


def test_the_tuned_thresholds_predict_the_tuned_submission(with_evidence, tmp_path):
    tuned = read(with_evidence / "run/results.json")["tuned"]
    source = str(with_evidence / "test_revised.json")
    predict.main([
        *("--model", str(with_evidence / "run"), "--input", source, "--format", "official"),
        *("--output", str(tmp_path / "found.json"), "--device", "cpu"),
        *("--threshold_shift", str(tuned["shift"])),
        *("--evidence_threshold", str(tuned["evidence_threshold"])),
    ])  # fmt: skip
    found, expected, unshifted = (
        sorted(
            (x["title"], x["h_idx"], x["t_idx"], x["r"], tuple(x["evidence"])) for x in read(path)
        )
        for path in (
            tmp_path / "found.json",
            with_evidence / "run/test_tuned.json",
            with_evidence / "run/predictions.json",
        )
    )
    assert found == expected and len(found) != len(unshifted)


def test_a_shift_is_a_number_and_not_of_fusion(with_evidence):
    def extractor(**more):
        return RelationExtractor.from_pretrained(with_evidence / "run", device="cpu", **more)

    with pytest.raises(InputError, match="--threshold_shift: nan is not a number"):
        extractor(threshold_shift=float("nan"))
    with pytest.raises(InputError, match="--threshold_shift: not with --fusion"):
        extractor(threshold_shift=-1.0, fusion=True)


def test_fusion_needs_a_threshold(folder):
    with pytest.raises(InputError, match="--fusion: the model has no fusion_threshold"):
        RelationExtractor.from_pretrained(folder, device="cpu", fusion=True)
