"""Documents that name the pairs to be classified: features, batches, loss, scores, prediction."""

import json
import random

import numpy as np
import pytest
import torch
from conftest import REL2ID, flags, make_document, read, small_model

import train
from backbones import BACKBONES
from backbones.kd_docre import AxialTransformer
from evaluation import evaluate
from inputs.documents import check_document, read_documents
from inputs.files import InputError
from losses import get_loss
from predict import RelationExtractor
from prepro import docred_features, pairs_of
from utils import collate, set_seed

TOKENS = ([2], [3], 0)


def with_candidates(document, count=7, seed=0):
    """Some of its pairs as candidates, in any order."""
    n = len(document["vertexSet"])
    pairs = [[h, t] for h in range(n) for t in range(n) if h != t]
    return document | {"candidates": random.Random(seed).sample(pairs, count)}


def documents_of(*counts):
    rng = random.Random(1)
    documents = [make_document(rng, 5 + i % 3, title=f"Doc {i}") for i in range(len(counts))]
    return [
        x if count is None else with_candidates(x, count)
        for x, count in zip(documents, counts, strict=True)
    ]


def test_batch_has_the_candidates_and_their_labels(tokenizer):
    documents = documents_of(7, None, 0, 3)
    features = docred_features(documents, tokenizer)
    batch = collate(features, TOKENS)
    rows = list(zip(batch["pairs"].tolist(), batch["labels"].tolist(), strict=True))
    expected = []
    for i, document in enumerate(documents):
        for h, t in pairs_of(features[i]).tolist():
            held = {REL2ID[x["r"]] for x in document["labels"] if (x["h"], x["t"]) == (h, t)}
            expected.append(([i, h, t], [r in (held or {0}) for r in range(97)]))
    assert rows == expected and len(rows) == 7 + 30 + 0 + 3


@pytest.mark.parametrize("backbone", ["atlop", "docunet"])
def test_logits_of_a_candidate_are_those_of_the_pair(tokenizer, backbone):
    """Whatever else is a candidate. (KD-DocRE's pairs attend to each other.)"""
    model = small_model(backbone=backbone).double()
    features = docred_features(documents_of(7, 4), tokenizer)
    chosen, every = collate(features, TOKENS), [dict(x) for x in features]
    for feature in every:
        del feature["pairs"]
    every = collate(every, TOKENS)
    with torch.no_grad():
        logits, whole = (model(**{k: x for k, x in b.items() if k != "labels"})
                         for b in (chosen, every))  # fmt: skip
    place = {tuple(pair): i for i, pair in enumerate(every["pairs"].tolist())}
    rows = [place[tuple(pair)] for pair in chosen["pairs"].tolist()]
    assert torch.allclose(logits, whole[rows], atol=1e-9) and len(logits) == 11


def test_kd_docres_pairs_attend_to_candidates_alone():
    """Its axial transformer against loops over the cells of two grids."""
    set_seed(0)
    axial = AxialTransformer(16, num_layers=2).double()
    cells = [(0, i, i) for i in range(4)] + [(0, 0, 1), (0, 2, 1), (0, 2, 3), (0, 3, 0)]
    cells += [(1, i, i) for i in range(4)] + [(1, 1, 0)]
    x = torch.randn(len(cells), 16, dtype=torch.float64)
    place = tuple(torch.tensor(cells).T)
    is_cell = torch.zeros(2, 4, 4, dtype=torch.bool)
    is_cell[place] = True

    def attend(fn, x, i, line):
        keys, values = fn.to_kv(x[line]).chunk(2, dim=1)
        parts = zip(*(part.chunk(8, dim=-1) for part in (fn.to_q(x[i]), keys, values)), strict=True)
        heads = [(k @ q / 2**0.5).softmax(0) @ v for q, k, v in parts]
        return fn.to_out(torch.cat(heads))

    with torch.no_grad():
        found = axial(x, place, is_cell)
        for attention, ffn, norm in zip(axial.axial_attns, axial.ffns, axial.lns, strict=True):
            over_heads, over_tails = (part["fn"] for part in attention.axial_attentions)
            sums = []
            for i, (doc, head, tail) in enumerate(cells):
                column = [j for j, (d, _, t) in enumerate(cells) if (d, t) == (doc, tail)]
                row = [j for j, (d, h, _) in enumerate(cells) if (d, h) == (doc, head)]
                sums.append(attend(over_heads, x, i, column) + attend(over_tails, x, i, row))
            x = norm(ffn(x + torch.stack(sums)))
    assert torch.allclose(found, x, atol=1e-12) and x.std() > 0.1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_over_candidates_and_none(tokenizer, backbone):
    model = small_model(backbone=backbone).train()
    batch = collate(docred_features(documents_of(2, 0, None), tokenizer), TOKENS)
    labels = batch.pop("labels")
    get_loss("HingeABL")(model(**batch), labels).backward()
    grads = [x.grad for x in model.parameters() if x.grad is not None]
    assert all(x.isfinite().all() for x in grads) and any(x.any() for x in grads)
    batch = collate(docred_features(documents_of(0, 0), tokenizer), TOKENS)
    assert batch.pop("labels").shape == model(**batch).shape == (0, 97)


def test_training_scores_and_predicts_candidates_alone(demo, tmp_path):
    """A label that is no candidate is to be found all the same, and counts as missed."""
    for split in ("train", "dev", "test"):
        documents = read(demo / f"{split}_revised.json")
        for i, x in enumerate(documents):
            related = [[label["h"], label["t"]] for label in x["labels"]][: len(x["labels"]) - 1]
            related = [list(pair) for pair in dict.fromkeys(map(tuple, related))]
            x["candidates"] = related + [p for p in [[0, 1], [1, 0]] if p not in related][: i % 2]
        (tmp_path / f"{split}_revised.json").write_text(json.dumps(documents))
    run, rates = tmp_path / "run", ["--learning_rate", "1e-9", "--classifier_lr", "1e-9"]
    where = ["--data_dir", str(tmp_path), "--save_logits", "--tune_threshold", *rates]
    train.main(flags(demo, run, *where, "--num_train_epochs", "1"))
    truth = read_documents(tmp_path / "test_revised.json")
    candidates = {(x["title"], h, t) for x in truth for h, t in x["candidates"]}
    logits = np.load(run / "test_logits.npz")["logits"]
    assert len(logits) == len(candidates)
    submission = read(run / "predictions.json")
    assert {(x["title"], x["h_idx"], x["t_idx"]) for x in submission} <= candidates
    results = read(run / "results.json")
    train_documents = read_documents(tmp_path / "train_revised.json")
    scores = evaluate(submission, truth, train_documents)
    assert {name: results["test"][name] for name in scores} == pytest.approx(scores)
    patterns = sum(results["test"][name] for name in ("TP", "TN", "FP", "FN_CRK", "FN_IRK"))
    assert patterns == len(candidates)
    extractor = RelationExtractor.from_pretrained(run, device="cpu")
    for record, document in zip(extractor(truth), truth, strict=True):
        found = {(x["head"]["entity"], x["tail"]["entity"]) for x in record["relations"]}
        assert found <= set(map(tuple, document["candidates"]))


@pytest.mark.parametrize("candidates,message", [
    ([[0, 5]], r"candidates\[0\]: \[0, 5\]: not two of 5 entities"),
    ([[0, 1], [2, 2]], r"candidates\[1\]: \[2, 2\]: an entity and itself"),
    ([[0, 1], [1, 0], [0, 1]], r"candidates\[2\]: \[0, 1\]: is there twice"),
    ([[0, "1"]], r"candidates\[0\]\[1\]: expected int"),
])  # fmt: skip
def test_bad_candidates_are_one_line(tmp_path, candidates, message):
    (document,) = documents_of(None)
    (tmp_path / "dev.json").write_text(json.dumps([document | {"candidates": candidates}]))
    with pytest.raises(InputError, match=f'dev.json: document 0 "Doc 0": {message}'):
        read_documents(tmp_path / "dev.json")


def test_markers_of_their_own(tokenizer):
    """Two mentions that start at one word have one marker there, or one each; a mention that is
    named twice has one."""
    mentions = [(0, 1, "A"), (0, 2, "A"), (0, 1, "A"), (1, 2, "B")]
    entities = [
        [{"name": "x", "sent_id": 0, "pos": [a, b], "type": kind}] for a, b, kind in mentions
    ]
    document = {"title": "T", "sents": [["a", "b", "c"]], "vertexSet": entities, "labels": []}
    check_document(document | {"own_markers": True}, REL2ID)
    shared, own = docred_features([document, document | {"own_markers": True}], tokenizer)
    words = [tokenizer.decode(x["input_ids"][1:-1]).replace(" ", "") for x in (shared, own)]
    assert words == ["*a**b*c", "**a**b**c"]
    assert [x[0][0] for x in own["entity_pos"]] == [0, 0, 0, 4]
