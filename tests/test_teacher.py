"""Teachers: what they give, the loss terms, documents without labels, what is refused."""

import os
import random
import shutil
import subprocess
import sys
from functools import partial

import make_demo
import numpy as np
import pytest
import torch
from conftest import ROOT, flags, make_document, read, small_model
from test_resume import assert_same_end, run_until
from test_train import without_times
from test_training import Step, Waits, taken, with_transformers_5

import train
from engine import fit
from engine.fit import batch_loss, train_step
from engine.inference import Predictor
from engine.run_folder import load_model
from engine.teacher import Teachers
from inputs.documents import read_documents
from inputs.files import InputError, write_json
from losses import get_loss
from model import pair_attention
from predict import RelationExtractor
from prepro import pairs_of


def plain_terms(logits, attention, batch, weights):
    """The terms in numpy, pair by pair; ATL's value is given."""
    terms = []
    for z, target in zip(logits, batch["teacher_logits"], strict=True):
        terms.append(weights["teacher_logits"] * np.mean((z - target) ** 2))
    for q, target in zip(attention, batch["teacher_attention"], strict=True):
        for student, teacher in zip(np.maximum(q, 1e-30), target, strict=False):
            if teacher > 0:
                kl = teacher * (np.log(teacher) - np.log(student))
                terms.append(weights["teacher_attention"] * kl)
    return sum(terms)


def test_loss_terms_against_numpy():
    """Five pairs, the first three of labelled documents; 6 bins, then 2 sentences."""
    rng = np.random.default_rng(0)
    logits, attention = rng.normal(size=(5, 97)) * 4, rng.dirichlet(np.ones(8), 5)
    attention[0, 2] = 0.0
    counts = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    arrays = {
        "teacher_logits": rng.normal(size=(5, 97)),
        "teacher_attention": rng.dirichlet(np.ones(6), 5),
        "evidence": counts,
    }
    arrays["teacher_attention"][1, 3] = 0.0
    batch = {name: torch.tensor(x) for name, x in arrays.items()}
    batch["labels"] = torch.eye(97)[[0, 3, 5]] > 0
    weights = {"labels": 0.3, "evidence": 0.5, "teacher_logits": 0.7, "teacher_attention": 1.1}
    output = torch.tensor(logits), torch.tensor(attention)
    value = batch_loss(output, batch, get_loss("ATL"), weights)
    expected = 0.3 * 3 * get_loss("ATL")(output[0][:3], batch["labels"]).item()
    for v, p in ([1, 0], attention[0, 6:]), ([0.5, 0.5], attention[2, 6:]):
        expected += 0.5 * sum(x * np.log(x / y) for x, y in zip(v, p, strict=True) if x)
    expected += plain_terms(logits, attention, arrays, weights)
    assert value.item() == pytest.approx(expected, rel=1e-6)  # attention is taken in float32


# --- What teachers give -----------------------------------------------------------------------

SIZES = 5, 3, 1, 6  # entities of the documents


@pytest.fixture(scope="module")
def documents():
    rng = random.Random(3)
    return [make_document(rng, n, 4 + n % 3, title=str(n)) for n in SIZES]


def predictor_of(model, tokenizer, size=512):
    how = {"max_seq_length": 1024, "batch_size": 2, "precision": "fp32"}
    predictor = Predictor(model, tokenizer, **how)
    predictor.collate = partial(predictor.collate, size=size)
    return predictor


def teachers_of(predictors, documents, same_ids=True, **more):
    features = [predictor.features(documents) for predictor in predictors]
    how = {"logits": True, "attention": True, **more}
    return Teachers(predictors, features, same_ids=same_ids, **how)


@pytest.mark.parametrize("size", [512, 64])
def test_two_teachers_give_their_mean(documents, tokenizer, size):
    """The attention q of a pair over all tokens; with size 64 the documents have several windows.
    What is kept is the same in half precision, in any order of documents."""
    models = [small_model(seed=i, vocab_size=200).double() for i in range(2)]
    predictors = [predictor_of(model, tokenizer, size) for model in models]
    teachers = teachers_of(predictors, documents)
    features = teachers.features[0]
    numbers = [3, 0, 2]
    taught = teachers.compute(numbers)
    batch = predictors[0].collate([features[i] for i in numbers])
    assert ("window_doc" in batch) == (size == 64)
    logits, shares = 0, 0
    for model in models:
        seen = []
        classify = model.classify
        model.classify = lambda *x, keep=seen, run=classify: keep.append(x) or run(*x)
        with torch.no_grad():
            logits = logits + model(**{k: x for k, x in batch.items() if k != "labels"}) / 2
        q = pair_attention(seen[0][2])  # [B, L, E, E]
        q = q / (q.sum(1, keepdim=True) + model.eps)
        doc, head, tail = batch["pairs"].T
        shares = shares + q[doc, :, head, tail] / 2
        model.classify = classify
    torch.testing.assert_close(taught["teacher_logits"], logits)
    torch.testing.assert_close(taught["teacher_attention"], shares)
    assert taught["teacher_attention"].sum(1).median() == pytest.approx(1, abs=1e-2)

    expected = sum(len(pairs_of(x)) * 97 for x in features)  # then attention, of either order
    expected += sum(len(pairs_of(x)) // 2 * len(x["input_ids"]) for x in features)
    assert teachers.num_bytes() == 2 * expected
    teachers.keep(memory=2 * expected - 1)
    assert teachers.kept == []
    teachers.keep(memory=2 * expected)
    assert sum(x.numel() for kept in teachers.kept for x in kept.values()) == expected
    kept = teachers.recall(numbers)
    for name, tensor in taught.items():
        assert kept[name].dtype == torch.float16
        torch.testing.assert_close(kept[name].double(), tensor, rtol=1e-3, atol=1e-6)


def test_teachers_with_other_windows_give_their_mean(documents, tokenizer):
    """Padded to different lengths, as on a GPU."""
    predictors = []
    for seed, size in enumerate((512, 64)):
        model = small_model(seed=seed, vocab_size=200).double()
        model.cpu_kernels = False
        predictors.append(predictor_of(model, tokenizer, size))
    alone = [teachers_of([x], documents).compute([0])["teacher_attention"] for x in predictors]
    both = teachers_of(predictors, documents).compute([0])["teacher_attention"]
    torch.testing.assert_close(both, sum(alone) / 2)


def test_other_tokens_are_compared_by_sentences(documents, tokenizer):
    """The first bin is what lies on no sentence; a document's candidates may be few."""
    documents = [dict(document) for document in documents]
    documents[0]["candidates"] = [[2, 0], [0, 1], [0, 2]]
    predictor = predictor_of(small_model(vocab_size=200).double(), tokenizer)
    teachers = teachers_of([predictor], documents, same_ids=False)
    taught = teachers.compute([0, 1])
    features = teachers.features[0]
    batch = predictor.collate(features[:2], sentences=True)
    with torch.no_grad():
        _, shares = predictor.model(**{k: x for k, x in batch.items() if k != "labels"})
    torch.testing.assert_close(taught["teacher_attention"][:, 1:], shares)
    assert (taught["teacher_attention"][:, 0] > 0).all()
    assert taught["teacher_attention"].sum(1) == pytest.approx(1, abs=1e-2)
    teachers.keep(memory=1e9)
    kept = teachers.recall([0, 1])["teacher_attention"].double()
    torch.testing.assert_close(kept, taught["teacher_attention"], rtol=1e-3, atol=1e-6)


# --- A step -----------------------------------------------------------------------------------


def taught_batch(student, teachers, numbers, num_labelled):
    """A batch of documents of which the first num_labelled have labels."""
    features = [teachers.features[0][i] for i in numbers]
    batch = student.collate(features, sentences=True)
    known = sum(len(pairs_of(x)) for x in features[:num_labelled])
    batch["labels"] = batch["labels"][:known]
    return teachers.add(batch, numbers)


def test_accumulated_batches_of_a_teacher_count_as_one(documents, tokenizer):
    """Labels count over the pairs that have them, the teacher over all; one batch has no labels."""
    teachers = teachers_of([predictor_of(small_model(9, vocab_size=200), tokenizer)], documents)
    teachers.keep(memory=1e9)
    results = []
    for groups in [[([3, 1, 0, 2], 2)]], [[([3], 1), ([1], 1), ([0, 2], 0)]]:
        step = Step(max_grad_norm=1e9)
        student, grads = predictor_of(step.model, tokenizer), taken(step)
        batches = [taught_batch(student, teachers, *group) for group in groups[0]]
        counts = {
            "labels": sum(len(batch["labels"]) for batch in batches),
            "teacher_logits": sum(len(batch["pairs"]) for batch in batches),
        }
        counts["teacher_attention"] = counts["teacher_logits"]
        how = {"weights": {"labels": 0.5, "teacher_logits": 0.1, "teacher_attention": 2.0}}
        loss = train_step(step.model, batches, **step.parts("ATL"), **how, counts=counts)
        results.append((loss.item(), grads[0]))
    (loss, grads), (other, others) = results
    assert other == pytest.approx(loss, rel=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-3, atol=1e-5)

    model = Step().model
    batch = taught_batch(predictor_of(model, tokenizer), teachers, [3, 1, 0, 2], 2)
    labels = batch.pop("labels")
    arrays = {name: batch.pop(name).double().numpy() for name in list(batch) if "teacher" in name}
    logits, attention = model(**batch)
    count = {"teacher_logits": 0.1 / len(logits), "teacher_attention": 2.0 / len(logits)}
    expected = 0.5 * get_loss("ATL")(logits[: len(labels)], labels).item()
    pair = [x.detach().double().numpy() for x in (logits, attention)]
    assert loss == pytest.approx(expected + plain_terms(*pair, arrays, count), rel=1e-4)


@with_transformers_5
def test_a_step_with_a_teacher_waits_for_nothing(documents, tokenizer):
    step = Step("bf16")
    teachers = teachers_of([predictor_of(small_model(9, vocab_size=200), tokenizer)], documents)
    batch = taught_batch(predictor_of(step.model, tokenizer), teachers, [3, 1, 0], 2)
    weights = {"labels": 1.0, "teacher_logits": 1.0, "teacher_attention": 1.0}
    more = {"weights": weights, "counts": dict.fromkeys(weights, 9), **step.parts("ATL")}
    train_step(step.model, [batch], **more)
    with Waits() as waits:
        train_step(step.model, [batch], **more)
    assert waits.seen == []


# --- Runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(demo, tmp_path_factory):
    """The demo, of whose training documents a half has no labels."""
    folder = tmp_path_factory.mktemp("corpus")
    for split in ("dev", "test"):
        shutil.copy(demo / f"{split}_revised.json", folder)
    documents = read(demo / "train_revised.json")
    for document in documents[8:]:
        del document["labels"]
    write_json(folder / "train_revised.json", documents[:8])
    write_json(folder / "unlabelled.json", documents[8:])
    return folder


def taught_by(teacher, corpus):
    more = "--teacher", str(teacher), "--teacher_evidence", "1", "--data_dir", str(corpus)
    return *more, "--unlabelled_file", "unlabelled.json"


def test_a_taught_run_that_breaks_off_goes_on_to_the_same_end(
    demo, corpus, finished, tmp_path, monkeypatch
):
    """It ends within its third epoch, and is evaluated there."""
    more = *taught_by(finished, corpus), "--max_steps", "10"
    arguments = flags(demo, tmp_path / "a", *more)
    run_until(5, arguments, monkeypatch)
    train.main([*arguments, "--resume"])
    train.main(flags(demo, tmp_path / "b", *more))
    assert_same_end(tmp_path / "a", tmp_path / "b")
    assert [x["step"] for x in without_times(tmp_path / "b")] == [4, 8, 10]
    results = read(tmp_path / "b/results.json")
    assert results["data"]["unlabelled"]["documents"] == 8
    train.main([*arguments, "--resume"])  # finished before
    with pytest.raises(InputError, match="was started with unlabelled_file 'unlabelled.json'"):
        train.main([*arguments, "--resume", "--unlabelled_file", ""])
    # An evaluation needs no teacher any more.
    model = ["--load_path", str(tmp_path / "b"), "--data_dir", str(demo), "--device", "cpu"]
    monkeypatch.setattr(train, "load_teachers", lambda *_: pytest.fail("a teacher was loaded"))
    train.main([*model, "--output_dir", str(tmp_path / "eval")])
    assert read(tmp_path / "eval/results.json")["test"] == results["test"]


def test_a_fault_is_told_before_the_teachers_run(demo, corpus, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(Teachers, "keep", lambda *_, **__: pytest.fail("the teachers ran"))
    more = *taught_by(finished, corpus), "--loss_type", "SSR_PU", "--prior_factor", "1000"
    with pytest.raises(InputError, match="--prior_factor: 1000 times"):
        train.main(flags(demo, tmp_path / "a", *more))


def test_batches_mix_documents_with_and_without_labels(
    demo, corpus, finished, tmp_path, monkeypatch
):
    """Those with labels come first, and all have what the teacher gives for them."""
    calls, original = [], fit.train_step
    monkeypatch.setattr(
        fit, "train_step", lambda *x, **y: calls.append((x, y)) or original(*x, **y)
    )
    more = *taught_by(finished, corpus), "--train_batch_size", "2", "--test_file", ""
    more += "--gradient_accumulation_steps", "2", "--num_train_epochs", "1"
    more += "--label_weight", "0.5", "--teacher_weight", "2"
    train.main(flags(demo, tmp_path / "a", *more))
    teacher, seen = load_model(finished), 0
    weights = {"labels": 0.5, "evidence": 0.0, "teacher_logits": 2.0, "teacher_attention": 1.0}
    for (_, batches), given in calls:
        assert given["weights"] == weights
        labels = torch.cat([batch["labels"] for batch in batches])
        seen += len(labels)
        counts, taught = given["counts"], sum(len(batch["pairs"]) for batch in batches)
        assert counts["labels"] == len(labels)
        assert counts["evidence"] == labels[:, 1:].any(1).sum()
        assert counts["teacher_logits"] == counts["teacher_attention"] == taught
        for batch in batches:
            doc = batch["pairs"][: len(batch["labels"]), 0]
            with_facts = doc[batch["labels"][:, 1:].any(1)].unique()
            assert with_facts.tolist() == list(range(len(with_facts))) == doc.unique().tolist()
            names = batch.keys() - {"labels", "sentences", "teacher_logits", "teacher_attention"}
            with torch.no_grad():
                logits = teacher(**{name: batch[name] for name in names})
            torch.testing.assert_close(
                batch["teacher_logits"].float(), logits, rtol=1e-2, atol=1e-2
            )
    documents = read_documents(corpus / "train_revised.json")
    assert seen == sum(len(x["vertexSet"]) * (len(x["vertexSet"]) - 1) for x in documents)


def test_labels_without_weight_count_for_nothing(demo, corpus, finished, tmp_path):
    """Two runs on other labels have the same losses."""
    documents = read(corpus / "train_revised.json")
    for document in documents[:5]:
        document["labels"] = []
    write_json(tmp_path / "few.json", documents)
    losses = []
    for name, *more in [
        ("a", "--label_weight", "0"),
        ("b", "--label_weight", "0", "--train_file", str(tmp_path / "few.json")),
    ]:
        more = *taught_by(finished, corpus), "--max_steps", "6", "--test_file", "", *more
        train.main(flags(demo, tmp_path / name, *more))
        losses.append([x["loss"] for x in without_times(tmp_path / name)])
    assert losses[0] == losses[1]


def test_a_teacher_with_another_tokenizer(demo, corpus, folder, tmp_path, monkeypatch):
    kept = []
    load = train.load_teachers
    monkeypatch.setattr(train, "load_teachers", lambda *x: kept.append(load(*x)) or kept[-1])
    more = *taught_by(folder, corpus), "--max_steps", "2", "--test_file", ""
    train.main(flags(demo, tmp_path / "a", *more))
    assert not kept[0].same_ids
    assert len(kept[0].kept) == 16 and kept[0].predictors == []


REFUSED = {
    "no run folder": (["--teacher", "nowhere"], "--teacher nowhere: not a run folder"),
    "class 0": (["--loss_type", "balance_softmax"], "whose class 0 is not that of balance_softmax"),
    "nothing": (["--teacher_weight", "0"], "--teacher_weight and --teacher_evidence are both 0"),
    "evidence": (["--label_weight", "0", "--evidence_weight", "1"], "evidence is in the labels"),
    "relations": (["--rel2id", "few.json"], "few.json"),
    "overwritten": (["--output_dir", "{teacher}", "--overwrite"], "the folder of the teacher"),
    "missing": (["--unlabelled_file", "no.json"], "no.json: no such file"),
    "candidates": (["--unlabelled_file", "chosen.json"], "only some documents have candidates"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taught_is_refused(demo, finished, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    relations = read(ROOT / "meta/rel2id.json")
    write_json(tmp_path / "few.json", dict(list(relations.items())[:-1]))
    documents = read(demo / "train_revised.json")[:2]
    write_json(tmp_path / "chosen.json", [x | {"candidates": [[0, 1]]} for x in documents])
    more, message = REFUSED[name]
    more = [x.format(teacher=finished) for x in more]
    if name == "candidates":
        more = ["--unlabelled_file", str(tmp_path / "chosen.json")]
    monkeypatch.setattr(train, "build_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InputError) as error:
        train.main(flags(demo, tmp_path / "run", "--teacher", str(finished), *more))
    assert message in str(error.value) and "\n" not in str(error.value)
    if name == "relations":
        assert str(error.value) == f"--teacher {finished}: has other relations than few.json"


@pytest.mark.parametrize("more", [
    ["--teacher_evidence", "1"], ["--unlabelled_file", "x.json"], ["--label_weight", "0"],
])  # fmt: skip
def test_flags_that_need_a_teacher(demo, tmp_path, more):
    with pytest.raises(InputError, match=f"^{more[0]}.*: only with --teacher"):
        train.main(flags(demo, tmp_path / "run", *more))


@pytest.mark.slow
def test_a_student_learns_what_its_teacher_predicts(demo, tmp_path):
    """From random weights and without labels, of which the documents here have none."""
    rates = "--learning_rate", "2e-3", "--classifier_lr", "4e-3"
    train.main(flags(demo, tmp_path / "teacher", *rates, "--num_train_epochs", "8"))
    documents = read_documents(demo / "train_revised.json")
    extractor = RelationExtractor.from_pretrained(tmp_path / "teacher", device="cpu")
    for document, record in zip(documents, extractor(documents), strict=True):
        document["labels"] = [
            {"h": x["head"]["entity"], "t": x["tail"]["entity"], "r": x["relation"]}
            for x in record["relations"]
        ]
    assert sum(len(document["labels"]) for document in documents) > 100
    write_json(tmp_path / "dev_revised.json", documents)
    documents = [x | {"labels": []} for x in documents]
    write_json(tmp_path / "train_revised.json", documents[:8])
    write_json(tmp_path / "unlabelled.json", 7 * documents[8:])
    more = (
        "--teacher",
        str(tmp_path / "teacher"),
        "--label_weight",
        "0",
        "--data_dir",
        str(tmp_path),
    )
    more += "--unlabelled_file", "unlabelled.json", "--max_steps", "200", "--test_file", ""
    train.main(flags(demo, tmp_path / "student", *rates, *more))
    assert read(tmp_path / "student/results.json")["dev"]["f1"] >= 0.9


@pytest.mark.parametrize("script", ["distil", "self_training"])
def test_faults_of_later_phases_are_told_before_a_teacher_is_trained(tmp_path, script):
    write_json(tmp_path / "train_revised.json", [])
    command = ["bash", str(ROOT / f"scripts/run_{script}.sh"), "--data_dir", str(tmp_path)]

    def said(*more, **variables):
        environment = os.environ | {"PYTHON": sys.executable} | variables
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        return done.stderr

    far = "/nowhere/far.json"
    for name, path in ("far.json", f"{tmp_path}/far.json"), (far, far):
        assert said(DISTANT=name) == f"error: {path}: no such file; DISTANT names it\n"
    assert said(HUMAN=far) == f"error: {far}: no such file; HUMAN names it\n"
    for flag in "--train_file", "--output_dir", "--seeds":
        assert said(flag, "1").startswith(f"error: {flag}: HUMAN and DISTANT name the documents")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["distil", "self_training"])
def test_both_phases_of_the_papers(tmp_path, script):
    """On 40 documents, an epoch each; the second start runs nothing again."""
    make_demo.main(
        ["--output_dir", str(tmp_path), *"--num_train 40 --num_dev 4 --num_test 4".split()]
    )
    documents = read(tmp_path / "train_revised.json")
    write_json(tmp_path / "train_distant.json", documents[20:])
    for x in (x for document in documents for x in document["labels"]):
        x["evidence"] = [0]
    write_json(tmp_path / "train_annotated.json", documents[:20])
    out = tmp_path / "my runs"  # paths may have blanks
    environment = os.environ | {"OUT": str(out), "PYTHON": sys.executable}
    environment |= {"HUMAN": "train_annotated.json", "TUNED_FLAGS": "--max_grad_norm 3"}
    encoder = ["--model_name_or_path", str(tmp_path / "encoder"), "--emb_size", "64"]
    command = ["bash", str(ROOT / f"scripts/run_{script}.sh"), "--data_dir", str(tmp_path)]
    command += [*encoder, "--device", "cpu", "--precision", "fp32", "--num_train_epochs", "1"]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before: ") == 3
    teacher, student, tuned = (
        read(out / f"{x}/results.json")["args"] for x in ("teacher", "student", "tuned")
    )
    weights = {"distil": (1, 0, 0.0), "self_training": (0, 1, 0.1)}[script]
    assert (student["teacher_weight"], student["teacher_evidence"]) == weights[:2]
    assert student["teacher"] == [str(out / "teacher")]
    assert tuned["init_path"] == str(out / "student") and tuned["teacher"] is None
    assert [x["evidence_weight"] for x in (teacher, student, tuned)] == [weights[2], 0, weights[2]]
    assert [x["train_file"] for x in (teacher, student, tuned)] == [
        "train_annotated.json", "train_distant.json", "train_annotated.json"
    ]  # fmt: skip
    assert [x["max_grad_norm"] for x in (teacher, student, tuned)] == [1, 5, 3]
    assert [x["loss_type"] for x in (student, tuned)] == [teacher["loss_type"]] * 2
