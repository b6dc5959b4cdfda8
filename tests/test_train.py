"""Whole runs: determinism, overfitting, the run folder, evaluation of checkpoints, bad input."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REL2ID, ROOT, flags, read, shared, small_encoder

import train
from engine import run_folder, scoring
from engine.command_line import parse_runs
from engine.fit import epoch_groups, make_optimizer, make_schedule
from engine.models import build_model
from engine.options import RECIPE, SAVED_WITH_MODEL, Options, saved_with
from engine.run_folder import load_model, locked
from evaluation import PATTERNS, count_patterns, evaluate
from inputs.documents import read_documents
from inputs.files import UNFINISHED, InputError, sha256_of
from model import DocREConfig
from utils import make_deterministic, set_seed


def without_times(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def test_run_folder(demo, finished):
    results, records = read(finished / "results.json"), without_times(finished)
    assert results["version"] == 1
    assert [r["step"] for r in records] == [3, 4, 6, 8]  # every 3 steps and at the epochs' ends
    best = max(records, key=lambda r: r["dev"]["f1"])
    assert results["best"] == {"epoch": best["epoch"], "step": best["step"]}
    assert results["dev"] == best["dev"]

    truth, facts = (read_documents(demo / f"{x}_revised.json") for x in ("test", "train"))
    scores = evaluate(read(finished / "predictions.json"), truth, facts)
    assert {k: results["test"][k] for k in scores} == pytest.approx(scores)
    arrays = np.load(finished / "test_logits.npz")
    assert len(arrays["logits"]) == sum(
        len(d["vertexSet"]) * (len(d["vertexSet"]) - 1) for d in truth
    )
    patterns = count_patterns(**arrays)
    assert {k: results["test"][k] for k in patterns} == pytest.approx(patterns)
    kept = read(finished / "patterns.json")
    assert [len(kept[split]) for split in ("dev", "test")] == [4, 5]
    assert np.sum(kept["test"], 0).tolist() == [patterns[name] for name in PATTERNS]
    sizes = [len(d["vertexSet"]) * (len(d["vertexSet"]) - 1) for d in truth]
    assert np.sum(kept["test"], 1).tolist() == sizes
    assert not list(finished.glob(".*")), "temporary files were left"
    assert results["data"]["test"]["documents"] == 5 and results["args"]["seed"] == 66


def test_same_seed_same_numbers(demo, finished, tmp_path, monkeypatch):
    commits, original = ["start"], train.train
    monkeypatch.setattr(run_folder, "commit_of", lambda folder: commits[-1])
    monkeypatch.setattr(train, "train", lambda *x: commits.append("end") or original(*x))
    train.main(flags(demo, tmp_path / "b", "--evaluation_steps", "3"))
    # the code may be changed while a long run goes on
    assert read(tmp_path / "b/results.json")["commit"] == "start" != commits[-1]
    assert without_times(tmp_path / "b") == without_times(finished)
    for name in ("predictions.json", "model.safetensors", "patterns.json"):
        assert (tmp_path / "b" / name).read_bytes() == (finished / name).read_bytes()


def test_the_best_weights_are_tested_not_the_last(demo, tmp_path, monkeypatch):
    original, given = scoring.score, [0.5, 0.4]

    def score(*outputs, **more):
        if given:
            return {"f1": given.pop(0), "precision": 0.0, "recall": 0.0}, []
        return original(*outputs, **more)

    monkeypatch.setattr(scoring, "score", score)
    train.main(flags(demo, tmp_path / "a"))
    train.main(flags(demo, tmp_path / "b", "--load_path", str(tmp_path / "a")))
    first, again = read(tmp_path / "a/results.json"), read(tmp_path / "b/results.json")
    assert first["best"]["step"] == 4 and not given
    assert first["test"] == again["test"] and first["dev"] == again["dev"]


def test_load_path_only_evaluates(demo, finished, tmp_path, capsys):
    before = (finished / "metrics.jsonl").read_bytes()
    where = ["--data_dir", str(demo), "--load_path", str(finished), "--device", "cpu"]
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/README.md").write_text("somebody's")
    train.main([*where, "--output_dir", str(tmp_path / "eval")])
    assert (tmp_path / "eval/README.md").read_text() == "somebody's"
    trained, evaluated = read(finished / "results.json"), read(tmp_path / "eval/results.json")
    assert evaluated["test"] == trained["test"] and evaluated["dev"] == trained["dev"]
    assert read(tmp_path / "eval/rel2id.json") == REL2ID  # which report.py asks for
    assert {name: evaluated["args"][name] for name in RECIPE} == {
        name: trained["args"][name] for name in RECIPE
    }
    with pytest.raises(InputError, match="--output_dir .*: holds a run that was trained"):
        train.main([*where, "--output_dir", str(finished), "--overwrite"])
    assert not (tmp_path / "eval/metrics.jsonl").exists()
    assert (finished / "metrics.jsonl").read_bytes() == before
    assert f"F1 {100 * trained['test']['f1']:.2f}" in capsys.readouterr().out


def test_the_encoder_of_a_model_alone_is_the_folder(finished, tmp_path):
    """Of a folder without results nobody knows the encoder's name, so it is not the default's."""
    shutil.copytree(finished, tmp_path / "box", ignore=shutil.ignore_patterns("results.json"))
    known = read(finished / "results.json")["args"]["model_name_or_path"]
    for flag in ("--load_path", "--init_path"):
        for folder, name in ((finished, known), (tmp_path / "box", str(tmp_path / "box"))):
            (run,) = parse_runs([flag, str(folder), "--device", "cpu"])
            assert run.model_name_or_path == name


def test_load_path_takes_a_released_checkpoint(demo, finished, tmp_path):
    state = load_model(finished).state_dict()
    torch.save(state, tmp_path / "released.pt")
    encoder = ["--model_name_or_path", str(demo / "encoder"), "--device", "cpu"]
    where = ["--data_dir", str(demo), "--load_path", str(tmp_path / "released.pt")]
    train.main([*where, *encoder, "--output_dir", str(tmp_path / "eval")])
    assert read(tmp_path / "eval/results.json")["test"] == read(finished / "results.json")["test"]
    # and makes a run folder of it, that others may read too
    again = load_model(tmp_path / "eval").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    mode = (tmp_path / "eval/model.safetensors").stat().st_mode
    assert mode == (tmp_path / "eval/results.json").stat().st_mode
    own = parse_runs([*where, "--backbone", "docunet", "--data_dir", str(demo)])[0].loss_type
    assert own == "balance_softmax"


def test_an_evaluation_leaves_the_model_as_it_is_and_nothing_of_the_one_before(
    demo, finished, tmp_path, capsys
):
    model, output = tmp_path / "model", tmp_path / "eval"
    shutil.copytree(finished, model)
    where = ["--data_dir", str(demo), "--device", "cpu", "--output_dir", str(output)]
    own = [*where, "--load_path", str(model), "--fusion"]
    train.main([*own, "--loss_type", "balance_softmax", "--save_logits", "--tune_threshold"])
    assert read(model / "config.json") == read(finished / "config.json")
    assert "the threshold of fusion is not kept" in capsys.readouterr().out
    (model / "results.json").write_text('{"args": 3}')  # nobody needs it to evaluate
    train.main([*own, "--overwrite"])
    assert not [*output.glob("*.npz"), *output.glob("*_tuned.json")]
    config = read(model / "config.json")
    threshold = read(output / "results.json")["fusion"]["threshold"]
    assert config == read(finished / "config.json") | {"fusion_threshold": threshold}
    with pytest.raises(InputError, match="the folder that is evaluated"):
        (model / "metrics.jsonl").unlink()
        train.main([*own, "--output_dir", str(model), "--overwrite"])
    assert (model / "model.safetensors").exists()


def test_what_wandb_is_told(demo, tmp_path, monkeypatch):
    told, started = [], []

    def init(**settings):
        started.append(settings)
        return SimpleNamespace(id=f"run{len(started)}")

    fake = SimpleNamespace(run=None, init=init, finish=lambda: None)
    fake.log = lambda record, step: told.append((step, record))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    more = "--wandb", "offline", "--num_train_epochs", "2", "--tune_threshold"
    with monkeypatch.context() as patch:  # as in a run that is stopped while it is evaluated
        patch.setattr(run_folder, "remove_states", lambda folder: None)
        train.main(flags(demo, tmp_path / "a", *more))
    results = read(tmp_path / "a/results.json")
    assert len(started) == 1 and started[0]["config"]["seed"] == 66
    assert [step for step, _ in told] == [4, 4, 8, 8, None]  # the loss, the scores on dev, ...
    records, sent = without_times(tmp_path / "a"), [record for _, record in told]
    assert [x["dev/f1"] for x in sent[1::2]] == [x["dev"]["f1"] for x in records]
    assert sent[0]["loss"] > 0 and sent[0]["learning_rate"] > sent[2]["learning_rate"] == 0
    assert sent[4]["test/f1"] == results["test"]["f1"]
    assert sent[4]["test_tuned/f1"] == results["tuned"]["test"]["f1"]
    (tmp_path / "a/results.json").unlink()
    train.main(flags(demo, tmp_path / "a", *more, "--resume"))
    assert started[1]["id"] == "run1" and started[1]["resume"] == "allow"

    def refuse(**settings):
        raise fake.errors.Error("No API key configured.\nUse wandb login")

    fake.init, fake.errors = refuse, SimpleNamespace(Error=type("Error", (Exception,), {}))
    with pytest.raises(InputError, match="^--wandb offline: No API key configured.$"):
        train.main(flags(demo, tmp_path / "b", *more))


def test_a_model_older_than_a_flag_has_its_default():
    config = DocREConfig(gamma=3.0)
    assert not hasattr(config, "positive_weight")
    saved = saved_with(config)
    assert saved["gamma"] == 3 and saved["positive_weight"] is None
    assert saved.keys() == SAVED_WITH_MODEL.keys()


@pytest.mark.slow
def test_overfits_real_documents(tmp_path, committed_golden):
    """8 real documents, a small encoder with random weights: F1 above 95 on themselves."""
    documents = read(shared("redocred-mini/train_revised.json"))
    documents = sorted(documents, key=lambda d: len(d["vertexSet"]))[60:68]
    assert sum(len(d["labels"]) for d in documents) > 150
    copies = [d | {"title": f"{d['title']} {i}"} for i in range(8) for d in documents]
    (tmp_path / "dev_revised.json").write_text(json.dumps(documents))
    (tmp_path / "train_revised.json").write_text(json.dumps(copies))
    encoder = tmp_path / "encoder"
    set_seed(0)
    small_encoder(hidden_size=64, intermediate_size=128).save_pretrained(encoder)
    for file in (committed_golden / "tokenizer").iterdir():
        shutil.copy(file, encoder)
    rates = ["--learning_rate", "2e-3", "--classifier_lr", "2e-3", "--emb_size", "128"]
    train.main(
        flags(tmp_path, tmp_path / "run", *rates, "--num_train_epochs", "4", "--test_file", "")
    )
    best = read(tmp_path / "run/results.json")["dev"]
    assert best["f1"] > 0.95, best["f1"]


def test_optimizer_and_schedule():
    model = torch.nn.Module()
    model.model, model.bilinear = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = make_optimizer(model, 5e-5, 1e-4, 1e-6)
    schedule = make_schedule(optimizer, 100, 0.06)
    rates = []
    for _ in range(100):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [min(i / 6, (100 - i) / 94) for i in range(100)]
    assert [r[0] for r in rates] == pytest.approx([5e-5 * x for x in expected])
    assert [r[1] for r in rates] == pytest.approx([1e-4 * x for x in expected])
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 0 and group["betas"] == (0.9, 0.999)
        assert group["eps"] == 1e-6


@pytest.mark.parametrize("by_length", [False, True])
def test_epoch_groups(by_length):
    lengths = [(7 * i) % 50 for i in range(103)]
    generator = torch.Generator().manual_seed(0)
    epochs = [epoch_groups(lengths, 4, 2, generator, by_length) for _ in range(2)]
    assert epochs[0] != epochs[1]
    for groups in epochs:
        assert len(groups) == 12 and {len(batch) for g in groups for batch in g} == {4}
        used = [i for group in groups for batch in group for i in batch]
        assert len(set(used)) == len(used) == 96
    spread = [max(x) - min(x) for x in ([lengths[i] for i in g[0]] for g in epochs[0])]
    assert (sum(spread) / 12 < 8) == by_length
    longest = [max(lengths[i] for i in group[0]) for group in epochs[0]]
    assert longest != sorted(longest)  # groups of like length come in any order


BAD_RUNS = {
    "loss": (["--loss_type", "HingeAbl"], "argument --loss_type: invalid choice: 'HingeAbl'"),
    "flag": (["--margn", "5"], "unrecognized arguments: --margn 5"),
    "file": (["--dev_file", "none.json"], "none.json: no such file"),
    "batch": (["--train_batch_size", "0"], "--train_batch_size: 0: expected int >= 1"),
    "batch too large": (["--train_batch_size", "17"], "16 documents do not fill one step of 17"),
    "classes": (["--num_class", "10"], "--num_class: 10, but"),
    "dropout": (["--attention_dropout", "1"], "--attention_dropout: 1.0: expected float < 1.0"),
    "device": (["--device", "quantum"], "--device quantum: "),
    "fp16": (["--precision", "fp16"], "--precision fp16: needs a GPU"),
    "no weights": (["--init_path", "nowhere"], "--init_path nowhere: no such file or folder"),
    "no run": (["--load_path", "tests"], "--load_path tests: not a run folder"),
}


def test_training_begins_with_given_weights(demo, finished, tmp_path):
    expected = load_model(finished).state_dict()
    for source in (finished, finished / "model.safetensors"):
        (run,) = parse_runs(flags(demo, tmp_path, "--init_path", str(source)))
        found = build_model(run, REL2ID).state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_what_is_trained_on_keeps_its_settings(demo, finished, tmp_path):
    """Of the flags that are not given again; the encoder's configuration is the run's own."""
    shutil.copytree(finished, tmp_path / "a")
    config = read(tmp_path / "a/config.json") | {"loss_type": "SAT", "labels_per_pair": 3}
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    output, source = tmp_path / "b", ["--init_path", str(tmp_path / "a")]
    where = ["--data_dir", str(demo), "--device", "cpu", "--output_dir", str(output)]
    train.main([*where, *source, "--num_labels", "2", "--num_train_epochs", "1"])
    args, of_source = (read(x / "results.json")["args"] for x in (output, finished))
    assert (args["loss_type"], args["num_labels"]) == ("SAT", 2)
    for name in ("emb_size", "model_name_or_path"):
        assert args[name] == of_source[name] != getattr(Options(), name)
    assert read(output / "config.json")["encoder"] == config["encoder"]


def test_another_loss_does_not_take_the_margin_of_the_first(demo, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "a")
    config = read(tmp_path / "a/config.json") | {"loss_type": "HingeABL", "margin": 3.0}
    (tmp_path / "a/config.json").write_text(json.dumps(config))
    where = ["--init_path", str(tmp_path / "a"), "--data_dir", str(demo), "--device", "cpu"]
    assert parse_runs(where)[0].margin == 3
    assert parse_runs([*where, "--loss_type", "AML"])[0].margin is None
    assert parse_runs([*where, "--loss_type", "AML", "--margin", "2"])[0].margin == 2


@pytest.mark.parametrize("name", BAD_RUNS)
def test_bad_flags_are_refused_before_a_model_is_loaded(demo, tmp_path, name, monkeypatch):
    monkeypatch.setattr(train, "build_model", lambda *_: pytest.fail("a model was loaded"))
    more, message = BAD_RUNS[name]
    with pytest.raises(InputError) as error:
        train.main(flags(demo, tmp_path / "run", *more))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_finished_run_is_not_overwritten_unasked(demo, finished):
    before = (finished / "results.json").read_bytes()
    with pytest.raises(InputError, match="holds a finished run; add --overwrite"):
        train.main(flags(demo, finished))
    assert (finished / "results.json").read_bytes() == before


def test_given_weights_are_not_trained_over(demo, finished, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(finished, folder)
    (tmp_path / "link").symlink_to(folder / "model.safetensors")
    for source in (folder, folder / "model.safetensors", tmp_path / "link"):
        with pytest.raises(InputError, match="a: holds the weights of --init_path"):
            train.main(flags(demo, folder, "--init_path", str(source), "--overwrite"))
    (folder / "results.json").unlink()  # as in a run that ended early and whose states are deleted
    with pytest.raises(InputError, match="a: holds a model, but no run that could go on"):
        train.main(flags(demo, folder, "--resume"))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="a: holds a model, or the beginning of a run"):
        train.main(flags(demo, folder))
    assert sha256_of(folder / "model.safetensors") == sha256_of(finished / "model.safetensors")


def test_a_model_and_the_files_of_a_user_stay(demo, finished, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(finished / "config.json", model)
    with pytest.raises(InputError, match="holds a model, or the beginning of a run; add --over"):
        train.main(flags(demo, model))
    own = tmp_path / "my"
    shutil.copytree(demo, own)
    shutil.copy(ROOT / "meta/rel2id.json", own)
    more = ["--rel2id", str(own / "rel2id.json"), "--num_train_epochs", "1"]
    train.main(flags(own, own, *more))
    assert read(own / "rel2id.json") == read(ROOT / "meta/rel2id.json")


def test_a_folder_in_which_a_run_is_at_work_is_refused(demo, tmp_path):
    """Whatever is asked for; and what the other is just writing stays."""
    output = tmp_path / "a"
    being_written = output / f"{UNFINISHED}x"
    with locked(output):
        being_written.mkdir()
        for more in ([], ["--resume"], ["--overwrite"]):
            with pytest.raises(InputError, match="a: another run is at work in it; give"):
                train.main(flags(demo, output, *more))
        assert being_written.exists()
    with locked(output):
        assert not being_written.exists()


def test_a_run_that_ends_while_another_starts_is_not_replaced(
    demo, finished, tmp_path, monkeypatch
):
    output, runs = tmp_path / "a", train.parse_runs

    def parse_runs(argv):  # then the other ends
        found = runs(argv)
        shutil.copytree(finished, output)
        return found

    monkeypatch.setattr(train, "parse_runs", parse_runs)
    with pytest.raises(InputError, match="holds a finished run; add --overwrite"):
        train.main(flags(demo, output))


def test_overwrite_keeps_the_old_run_until_the_new_one_can_start(demo, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(InputError, match="tokenizer nowhere: cannot be loaded"):
        more = ["--overwrite", "--model_name_or_path", "nowhere"]
        train.main(flags(demo, tmp_path / "run", *more))
    assert read(tmp_path / "run/results.json") == read(finished / "results.json")


@pytest.mark.parametrize("content,message", [
    ([], "expected an object"),
    ({"Na": 0, "P17": "1"}, "expected an object"),
    ({"Na": 0, "P17": 2}, "the class ids are not 0 to 1, each once"),
])  # fmt: skip
def test_bad_relation_file(demo, tmp_path, content, message):
    path = tmp_path / "rel2id.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{path}: {message}"):
        train.main(flags(demo, tmp_path / "run", "--rel2id", str(path)))


def test_encoder_type_must_agree(demo, tmp_path):
    with pytest.raises(InputError, match="the encoder is of type bert"):
        train.main(flags(demo, tmp_path / "run", "--transformer_type", "roberta"))


def test_process_ends_with_one_line_and_code_2(demo, tmp_path):
    documents = read(demo / "dev_revised.json")
    documents[2]["vertexSet"][0] = []
    bad = tmp_path / "dev_revised.json"
    bad.write_text(json.dumps(documents))
    command = [sys.executable, str(ROOT / "train.py"), *flags(demo, tmp_path / "run")]
    result = subprocess.run([*command, "--dev_file", str(bad)], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    title = json.dumps(documents[2]["title"])
    assert result.stderr == (
        f"error: {bad}: document 2 {title}: vertexSet[0]: expected list of length >= 1\n"
    )


def test_gradient_of_indexing_has_the_same_bits_in_every_run():
    """With two threads, which add up in any order unless told not to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    make_deterministic()
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(20, (20_000,), generator=generator)
    weight = torch.randn(20_000, 64, generator=generator)
    grads = []
    for _ in range(5):
        values = torch.zeros(20, 64, requires_grad=True)
        (values[index] * weight).sum().backward()
        grads.append(values.grad)
    torch.set_num_threads(threads)
    assert all(torch.equal(grad, grads[0]) for grad in grads)
