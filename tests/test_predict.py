"""Relations in new documents: every way in gives the same; what a pair attends to; sharing."""

import copy
import json
import os
import random
import re
import subprocess
import sys
from itertools import count, islice

import pytest
import torch
from conftest import (
    REL2ID,
    ROOT,
    eager_copy,
    make_document,
    read,
    save_run,
    small_model,
    text_with,
)
from test_documents import GOOD

import predict
from engine import run_folder
from engine.extractor import WINDOW, RelationExtractor
from evaluation import evaluate, prediction_patterns
from inputs.documents import read_predictions
from inputs.files import InputError, run_main, write_json
from inputs.span_documents import new_documents
from losses import decode
from model import localized_contexts, sentence_attention
from model import unordered_pair as place_of
from prepro import docred_features
from utils import collate
from viewing import page


@pytest.fixture(scope="session")
def corpus():
    """Documents of several lengths, without labels; with one entity, with none, without text."""
    rng = random.Random(0)
    sizes = [(4, 3), (6, 9), (1, 2), (0, 2), (3, 1), (5, 30), (2, 4), (4, 6)]
    documents = [make_document(rng, *x, title=f"Doc {i}") for i, x in enumerate(sizes)]
    for document in documents:
        del document["labels"]
    return [*documents, {"title": "nothing", "sents": [], "vertexSet": []}]


@pytest.fixture(scope="session")
def expected(extractor, corpus):
    records = extractor(corpus)
    assert sum(len(record["relations"]) for record in records) > 100
    return records


def assert_same(records, expected):
    """Equal but for rounding: matrix products of another batch add up in another order."""
    assert len(records) == len(expected)
    for record, other in zip(records, expected, strict=True):
        assert record.keys() == other.keys() and record["title"] == other["title"]
        assert len(record["relations"]) == len(other["relations"])
        for x, y in zip(record["relations"], other["relations"], strict=True):
            weak = ("score", "sentences")
            assert {k: v for k, v in x.items() if k not in weak} == {
                k: v for k, v in y.items() if k not in weak
            }
            assert x["score"] == pytest.approx(y["score"], abs=2e-3)
            weights = ({s["sentence"]: s["weight"] for s in z["sentences"]} for z in (x, y))
            assert next(weights) == pytest.approx(next(weights), abs=2e-3)


def command(folder, *more):
    return ["--model", str(folder), "--device", "cpu", "--precision", "fp32", *map(str, more)]


def run(folder, source, target, *more):
    predict.main(command(folder, "--input", source, "--output", target, *more))
    return read(target)


# --- one document, one result -----------------------------------------------------------------


def test_relations_are_the_models(extractor, corpus, expected):
    """Against the model's logits, document by document, and the rule of decoding in loops."""
    for document, record in zip(corpus, expected, strict=True):
        (feature,) = docred_features([document], extractor.tokenizer)
        batch = extractor.predictor.collate([feature], sentences=True)
        del batch["labels"]
        with torch.no_grad():
            logits, shares = extractor.model(**batch)
        for x in record["relations"]:
            row = batch["pairs"].tolist().index([0, x["head"]["entity"], x["tail"]["entity"]])
            assert x["evidence"] == (shares[row] > 0.2).nonzero()[:, 0].tolist()
        found = {}
        for (_, head, tail), row in zip(batch["pairs"].tolist(), logits.tolist(), strict=True):
            highest = sorted(range(97), key=lambda c: -row[c])[:4]
            for c in highest:
                if row[c] > row[0]:
                    found[head, tail, c] = row[c] - row[0]
        scores = {
            (x["head"]["entity"], x["tail"]["entity"], REL2ID[x["relation"]]): x["score"]
            for x in record["relations"]
        }
        assert scores == pytest.approx(found, abs=2e-3)
        names = [mentions[0]["name"] for mentions in document["vertexSet"]]
        for x in record["relations"]:
            assert x["head"]["name"] == names[x["head"]["entity"]]
            assert x["tail"]["mentions"] == document["vertexSet"][x["tail"]["entity"]]
            assert x["name"] == read(ROOT / "meta/rel_info.json")[x["relation"]]


def test_alone_in_a_batch_and_in_a_list(extractor, corpus, expected, folder):
    assert_same([extractor(document) for document in corpus], expected)
    assert_same(extractor(corpus[::-1])[::-1], expected)
    other = RelationExtractor.from_pretrained(str(folder), device="cpu", batch_size=3)
    assert_same(other(corpus), expected)
    assert extractor([]) == []


def test_from_a_file(folder, corpus, expected, tmp_path):
    """Other forms of it: test_documents.py."""
    (tmp_path / "in.json").write_text("\n".join(map(json.dumps, corpus)), encoding="utf-8")
    assert_same(run(folder, tmp_path / "in.json", tmp_path / "out.json"), expected)


def test_from_standard_input_to_standard_output(folder, corpus, expected):
    """Through pipes, which can be read only once."""
    script = [sys.executable, str(ROOT / "predict.py")]
    arguments = command(folder, "--input", "-", "--output", "-")
    text = json.dumps(corpus)
    result = subprocess.run([*script, *arguments], input=text, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert_same(json.loads(result.stdout), expected)
    num_relations = sum(len(record["relations"]) for record in expected)
    assert result.stderr.startswith(f"documents: {len(corpus)}, relations: {num_relations}, ")


@pytest.mark.parametrize("size", [1, 100_000])  # the first is only written at the end
def test_reader_of_standard_output_may_stop_reading(monkeypatch, size):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            run_main(lambda: predict.write_output([{"title": "x" * size}], "-"))
    assert end.value.code == 1


def test_official_format_is_accepted_by_the_scorer(folder, extractor, tmp_path):
    rng = random.Random(1)
    truth = [make_document(rng, title=f"Doc {i}") for i in range(3)]
    for document, record in zip(truth, extractor(truth), strict=True):
        for x in record["relations"][:5]:  # some that are predicted
            ends = {"h": x["head"]["entity"], "t": x["tail"]["entity"]}
            document["labels"].append(ends | {"r": x["relation"]})
    (tmp_path / "in.json").write_text(json.dumps(truth))
    run(folder, tmp_path / "in.json", tmp_path / "out.json", "--format", "official")
    records = run(folder, tmp_path / "in.json", tmp_path / "relations.json")
    submission = read_predictions(tmp_path / "out.json", truth)
    assert len(submission) == sum(len(record["relations"]) for record in records)
    correct = sum(x["correct"] for record in records for x in record["relations"])
    scores = evaluate(submission, truth)
    assert scores["precision"] == pytest.approx(correct / len(submission)) and correct > 0
    gold = len({(d["title"], x["h"], x["t"], x["r"]) for d in truth for x in d["labels"]})
    assert correct + sum(len(record["missed"]) for record in records) == gold


def test_a_relation_that_is_too_many_of_its_pair_is_missed(tokenizer):
    model = small_model(settings={"labels_per_pair": 1})
    extractor, document = (
        RelationExtractor(model, tokenizer, device="cpu"),
        make_document(random.Random(1), 3),
    )
    document["labels"] = []
    most = RelationExtractor(small_model(settings={"labels_per_pair": 2}), tokenizer, device="cpu")
    for x in most(document)["relations"]:  # two of each pair, both above the threshold
        ends = {"h": x["head"]["entity"], "t": x["tail"]["entity"]}
        document["labels"].append(ends | {"r": x["relation"]})
    record = extractor(document)
    assert len(record["missed"]) == len(record["relations"]) == 6
    assert {x["pattern"] for x in record["missed"]} == {"FP"}


@pytest.mark.parametrize("loss_type,lower", [("ATL", 25), ("balance_softmax", 18)])
def test_missed_relations_and_their_patterns(tokenizer, loss_type, lower):
    model = small_model(seed=3, settings={"loss_type": loss_type})
    with torch.no_grad():  # a high threshold: many pairs have no prediction at all
        model.bilinear.bias[1:] -= lower
    extractor = RelationExtractor(model, tokenizer, device="cpu")
    document = make_document(random.Random(5), 7) | {"labels": []}
    (feature,) = docred_features([document], tokenizer)
    batch = extractor.predictor.collate([feature], sentences=True)
    labels = batch.pop("labels").fill_(False)
    with torch.no_grad():
        logits, _ = model(**batch)
    property_of = extractor.property_of
    row_of = {(h, t): i for i, (_, h, t) in enumerate(batch["pairs"].tolist())}
    for (h, t), row in row_of.items():  # what ranks first, what ranks last, nothing, in turn
        ranking = (logits[row, 1:].argsort(descending=True) + 1).tolist()
        if row % 3 < 2:
            relation = ranking[-(row % 3)]
            document["labels"].append({"h": h, "t": t, "r": property_of[relation]})
            labels[row, relation] = True
    record = extractor(document)
    threshold = None if loss_type == "ATL" else 0
    patterns = prediction_patterns(logits.numpy(), labels.numpy(), threshold)
    names = ("TP", "TN", "FP", "FN_CRK", "FN_IRK")
    assert {x["pattern"] for x in record["missed"]} == {"FP", "FN_CRK", "FN_IRK"}
    for x in record["missed"]:
        row = row_of[x["head"]["entity"], x["tail"]["entity"]]
        assert x["pattern"] == names[patterns[row]]
        assert labels[row, REL2ID[x["relation"]]] and x["score"] <= 0
    found = {(x["head"]["entity"], x["tail"]["entity"], x["relation"]) for x in record["relations"]}
    predicted = decode(logits, loss_type)[:, 1:].nonzero().tolist()
    pairs = {row: pair for pair, row in row_of.items()}
    assert found == {(*pairs[row], property_of[c + 1]) for row, c in predicted}
    correct = [x["correct"] for x in record["relations"]]
    assert sum(correct) + len(record["missed"]) == len(document["labels"]) and sum(correct) > 0


# --- what a pair attends to -------------------------------------------------------------------


def slow_sentence_weights(model, tokenizer, document, head, tail):
    """The formula of localized context pooling in loops over heads, mentions and tokens."""
    tokens, owner, places = [tokenizer.cls_token_id], [None], {}
    marker = tokenizer.convert_tokens_to_ids("*")
    mentions = [(e, m) for e, entity in enumerate(document["vertexSet"]) for m in entity]
    for i, sentence in enumerate(document["sents"]):
        for j, word in enumerate(sentence):
            starting = [e for e, m in mentions if (m["sent_id"], m["pos"][0]) == (i, j)]
            for e in starting:
                places.setdefault(e, []).append(len(tokens))
            pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
            ending = any((m["sent_id"], m["pos"][1] - 1) == (i, j) for _, m in mentions)
            pieces = [marker] * bool(starting) + pieces + [marker] * ending
            tokens += pieces
            owner += [i] * len(pieces)
    ids = torch.tensor([[*tokens, tokenizer.sep_token_id]])
    with torch.no_grad():
        output = eager_copy(copy.deepcopy(model.model))(
            ids, torch.ones_like(ids), output_attentions=True
        )
    rows = output.attentions[-1][0].double()
    by_entity = [rows[:, places[e]].mean(1) for e in (head, tail)]
    q = (by_entity[0] * by_entity[1]).mean(0)
    q = q / (q.sum() + 1e-5)
    totals = [0.0] * len(document["sents"])
    for weight, sentence in zip(q.tolist(), [*owner, None], strict=True):
        if sentence is not None:
            totals[sentence] += weight
    return totals


def test_attended_sentences_against_slow_version(extractor, corpus, expected):
    checked = 0
    for document, record in zip(corpus[:2], expected, strict=False):
        for x in record["relations"][::9]:
            pair = x["head"]["entity"], x["tail"]["entity"]
            totals = slow_sentence_weights(extractor.model, extractor.tokenizer, document, *pair)
            assert [s["weight"] for s in x["sentences"]] == pytest.approx(
                sorted(totals, reverse=True)[:3], abs=2e-4
            )
            for s in x["sentences"]:
                assert s["weight"] == pytest.approx(totals[s["sentence"]], abs=2e-4)
                assert s["text"] == " ".join(document["sents"][s["sentence"]])
            checked += 1
    assert checked > 5


def test_shares_are_of_the_attention_that_makes_the_context_also_over_several_windows(tokenizer):
    """q H is the context that the model classifies a pair with."""
    model = small_model(max_position_embeddings=96).double()
    rng = random.Random(2)
    documents = [make_document(rng, 6, 12), make_document(rng, 4, 2)]
    features = docred_features(documents, tokenizer)
    batch = collate(features, ([2], [3], 0), size=96)
    assert len(batch["window_doc"]) > 4
    del batch["labels"]
    seen = {}
    model.classify = lambda tokens, entities, attention, *rest: seen.update(
        tokens=tokens, attention=attention
    )
    with torch.no_grad():
        model(**batch)
        every = torch.eye(seen["tokens"].shape[1], dtype=torch.float64).expand(2, -1, -1)
        q = sentence_attention(seen["attention"], every, batch["pairs"], 1e-5)
        contexts = localized_contexts(seen["tokens"], seen["attention"])
    expected = contexts.flatten(0, 1)[place_of(batch["pairs"], seen["attention"].shape[1])]
    tokens = seen["tokens"][batch["pairs"][:, 0]]
    assert torch.allclose((q[:, None] @ tokens)[:, 0], expected, atol=1e-12)
    total = q.sum(1)  # 0 where no window holds both
    assert ((total == 0) | (0.9 < total)).all() and (total < 1).all() and (total > 0).any()


def test_what_was_cut_off_is_told_and_attended_by_nobody(folder, corpus, tmp_path, capsys):
    short = RelationExtractor.from_pretrained(folder, device="cpu", max_seq_length=200)
    record = short(corpus[5])
    assert short.num_cut == 1 and short(corpus[2]) and short.num_cut == 1
    (feature,) = docred_features([corpus[5]], short.tokenizer)
    kept = sum(bound + 1 < 199 for bound in feature["sentence_bounds"])
    assert 2 < kept < 10
    used = {s["sentence"] for x in record["relations"] for s in x["sentences"]}
    assert used and max(used) < kept
    (tmp_path / "in.json").write_text(json.dumps(corpus))
    run(folder, tmp_path / "in.json", tmp_path / "out.json", "--max_seq_length", 200)
    assert "were cut at 200 tokens (--max_seq_length)" in capsys.readouterr().err


# --- what is refused --------------------------------------------------------------------------


BAD_RUNS = {
    "flag": (["--inptu", "x"], "unrecognized arguments"),
    "no file": (["--input", "none.json"], "none.json: no such file"),
    "length": (["--max_seq_length", "2"], "--max_seq_length: 2 is less than 3"),
    "fp16": (["--precision", "fp16"], "--precision fp16: needs a GPU"),
    "output": (["--output", "nowhere/out.json"], "--output nowhere/out.json: no such folder"),
    "no model": (["--model", "nowhere"], "model nowhere: no run folder, nor to be had: "),
    "no run": (["--model", "tests"], "model tests: not a run folder, it has no config.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_RUNS)
def test_bad_flags_end_with_one_line_and_code_2(folder, tmp_path, name, monkeypatch, capsys):
    (tmp_path / "in.json").write_text(GOOD)
    monkeypatch.chdir(ROOT)
    more, message = BAD_RUNS[name]
    arguments = command(folder, "--input", tmp_path / "in.json", *more)
    with pytest.raises(SystemExit) as end:
        run_main(lambda: predict.main(arguments))
    output = capsys.readouterr()
    assert end.value.code == 2 and output.out == ""
    assert output.err.startswith(f"error: {message}") and output.err.count("\n") == 1


def test_evidence_threshold_is_a_share(extractor):
    with pytest.raises(InputError, match=r"--evidence_threshold: -0.1 is not in \[0, 1\]"):
        RelationExtractor(extractor.model, extractor.tokenizer, "cpu", evidence_threshold=-0.1)


BAD_FOLDERS = {
    "no loss": ({"loss_type": "x"}, "loss_type: 'x': is none of ATL"),
    "classes": ({"id2label": {"0": "Na"}, "label2id": {"Na": 0}}, "bilinear.weight is [97, "),
    "encoder": ({"encoder": "bert-base-cased"}, "encoder: not an object"),
    "vocabulary": ({}, "tokenizer: id "),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_bad_run_folder(tokenizer, tmp_path, name):
    change, message = BAD_FOLDERS[name]
    model = small_model(vocab_size=20 if name == "vocabulary" else 8000)
    save_run(model, tokenizer, tmp_path / "run")
    config = read(tmp_path / "run/config.json")
    write_json(tmp_path / "run/config.json", config | change)
    with pytest.raises(InputError) as error:
        RelationExtractor.from_pretrained(tmp_path / "run", device="cpu")(text_with())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_fault_in_the_last_document_leaves_everything_as_it_was(folder, tmp_path, monkeypatch):
    (tmp_path / "in.json").write_text(f"[{GOOD}, {{}}]")
    (tmp_path / "out.json").write_text("old")
    monkeypatch.setattr(predict, "load_model", lambda _: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match="in.json: document 1: neither"):
        run(folder, tmp_path / "in.json", tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == "old"


def test_output_appears_only_when_it_is_whole(folder, corpus, tmp_path, monkeypatch):
    (tmp_path / "in.json").write_text(json.dumps(corpus))
    original = predict.FORMATS["relations"]

    def interrupted(items, file):
        original(islice(items, 2), file)
        raise KeyboardInterrupt

    monkeypatch.setitem(predict.FORMATS, "relations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "in.json", tmp_path / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


def test_documents_with_one_title(folder, extractor, corpus, tmp_path):
    """Two records, for the records are in order; refused where titles tell documents apart."""
    twice = [corpus[0] | {"title": "same"}, corpus[1] | {"title": "same"}]
    records = extractor(twice)
    assert [len(r["relations"]) for r in records] == [len(extractor(d)["relations"]) for d in twice]
    (tmp_path / "in.json").write_text(json.dumps(twice))
    assert_same(run(folder, tmp_path / "in.json", tmp_path / "out.json"), records)
    with pytest.raises(InputError, match='document 1 "same": title: document 0 has the same title'):
        run(folder, tmp_path / "in.json", tmp_path / "two.json", "--format", "official")
    assert not (tmp_path / "two.json").exists()


def test_page_of_the_first_documents(folder, corpus, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "LIMIT", 3)
    (tmp_path / "in.json").write_text(json.dumps(corpus))
    where = tmp_path / "page.html"
    predict.main(command(folder, "--input", tmp_path / "in.json", "--html", where))
    output = capsys.readouterr()
    data = json.loads(re.search(r'type="application/json">(.*)</script>', where.read_text())[1])
    first = expected[:3]
    assert output.out == "" and data["total"] == len(corpus)
    assert [x["title"] for x in data["documents"]] == [x["title"] for x in first]
    for shown, record in zip(data["documents"], first, strict=True):
        facts = {(x["head"], x["tail"], x["property"]) for x in shown["facts"]}
        assert facts == {
            (x["head"]["entity"], x["tail"]["entity"], x["relation"]) for x in record["relations"]
        }
    assert f"the page shows the first 3 of {len(corpus)} documents" in output.err


def test_a_page_is_written_though_nobody_reads_the_table(folder, corpus, tmp_path, monkeypatch):
    def closed(records, file):
        next(records)
        raise BrokenPipeError

    (tmp_path / "in.json").write_text(json.dumps(corpus))
    where, table = tmp_path / "page.html", ["--output", "-", "--format", "csv"]
    monkeypatch.setitem(predict.FORMATS, "csv", closed)
    with pytest.raises(BrokenPipeError):
        predict.main(command(folder, "--input", tmp_path / "in.json", "--html", where, *table))
    assert all(json.dumps(x["title"]) in where.read_text() for x in corpus)


def test_predicting_is_lazy(extractor):
    taken = count()
    documents = (next(taken) and text_with() or text_with() for _ in count())
    stream = extractor.stream(new_documents(documents, REL2ID))
    assert len(list(islice(stream, 130))) == 130
    assert next(taken) == 2 * WINDOW * extractor.batch_size


def test_model_of_the_hub(folder, corpus, expected, tmp_path, monkeypatch):
    """Downloaded with snapshot_download, here a stub."""
    asked = []
    monkeypatch.setattr(
        run_folder, "snapshot_download", lambda name, **_: asked.append(name) or str(folder)
    )
    (tmp_path / "in.json").write_text(json.dumps(corpus))
    assert_same(run("somebody/model", tmp_path / "in.json", tmp_path / "out.json"), expected)
    assert asked == ["somebody/model"]
