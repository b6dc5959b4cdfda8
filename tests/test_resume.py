"""Runs that are killed or stopped go on to the same end; what cannot go on says so in one line."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, read
from safetensors.torch import load_file
from test_train import flags, without_times

import train
from engine import fit, resume, scoring
from inputs.files import UNFINISHED, InputError, remove_unfinished

KILLS = int(os.environ.get("KILLS", 1))  # docs/reliability.md: KILLS=20


@pytest.fixture(scope="module")
def whole(demo, tmp_path_factory):
    """An uninterrupted run, with dropout, and its flags."""
    output = tmp_path_factory.mktemp("whole") / "a"
    train.main(flags(demo, output))
    return output


def assert_same_end(folder, whole):
    ours, theirs = (load_file(x / "model.safetensors") for x in (folder, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert without_times(folder) == without_times(whole)
    for name in ("dev", "test", "best"):
        assert read(folder / "results.json")[name] == read(whole / "results.json")[name]
    assert read(folder / "predictions.json") == read(whole / "predictions.json")
    assert not resume.state_files(folder), "a finished run needs no state"
    assert not list(folder.glob(f"{UNFINISHED}*"))


class Killed(BaseException):
    """Ends a run in this process as abruptly as a signal would, short of the finally blocks."""


def run_until(step, arguments, monkeypatch, seed=66):
    """Breaks the run of this seed off after that step."""
    original, taken = fit.train_step, []

    def break_off(*args, **more):
        taken.append(torch.initial_seed())
        if taken.count(seed) > step:
            raise Killed
        return original(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(fit, "train_step", break_off)
        train.main(arguments)


@pytest.mark.parametrize("step,save_steps", [(2, "-1"), (4, "3"), (8, "1")])
def test_a_run_that_breaks_off_goes_on_to_the_same_end(
    demo, whole, tmp_path, monkeypatch, step, save_steps
):
    """Before the first state, in the middle of an epoch, after an evaluation, in the last step."""
    arguments = flags(demo, tmp_path / "a", "--save_steps", save_steps)
    run_until(step - 1, arguments, monkeypatch)
    train.main([*arguments, "--resume"])
    assert_same_end(tmp_path / "a", whole)


def command(*arguments):
    return [sys.executable, str(ROOT / "train.py"), *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(1, KILLS + 1))
def test_killed_at_a_random_moment(demo, whole, tmp_path, kill):
    """SIGKILL at random moments of training, until one gets through."""
    arguments = command(*flags(demo, tmp_path / "a", "--save_steps", "1"), "--resume")
    draw, killed, output = random.Random(kill), 0, tmp_path / "a"
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    how["env"] = os.environ | {"PYTHONUNBUFFERED": "1"}
    while True:
        process = subprocess.Popen(arguments, **how)
        # the start takes most of the time: wait until there is something to be killed
        while process.poll() is None and not process.stdout.readline().startswith("device:"):
            pass
        try:
            timeout = None if killed == 3 else draw.uniform(0, 2)
            _, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
            continue
        assert process.returncode == 0, errors
        break
    assert_same_end(output, whole)


def test_a_stop_saves_and_says_how_to_go_on(demo, whole, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)  # ignored, in a job in the background
    arguments = flags(demo, tmp_path / "a")
    original, taken = fit.train_step, []

    def stop(*args, **more):
        taken.append(original(*args, **more))
        if len(taken) == 6:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return taken[-1]

    monkeypatch.setattr(fit, "train_step", stop)
    with pytest.raises(KeyboardInterrupt, match="after step 6 of 8; .* --resume, without"):
        train.main(arguments)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(fit, "train_step", original)
    train.main([*arguments, "--resume"])
    assert "going on after step 6 of 8" in capsys.readouterr().out
    assert_same_end(tmp_path / "a", whole)


def test_a_kill_during_the_evaluation_loses_no_step(demo, whole, tmp_path, monkeypatch, capsys):
    arguments = flags(demo, tmp_path / "a")

    def score(*args, **more):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(scoring, "score", score)
        train.main(arguments)
    train.main([*arguments, "--resume"])
    assert "going on after step 4 of 8" in capsys.readouterr().out
    assert_same_end(tmp_path / "a", whole)


def test_a_stop_during_the_last_evaluation_is_heard(demo, whole, tmp_path, monkeypatch):
    arguments = flags(demo, tmp_path / "a", "--seeds", "66", "2")
    original, taken = scoring.score, []

    def score(*args, **more):
        taken.append(original(*args, **more))
        if len(taken) == 2:  # after the last step
            os.kill(os.getpid(), signal.SIGTERM)
        return taken[-1]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="the last step"):
        patch.setattr(scoring, "score", score)
        train.main(arguments)
    assert not (tmp_path / "a/seed2").exists()
    train.main([*flags(demo, tmp_path / "a/seed66"), "--resume"])
    assert_same_end(tmp_path / "a/seed66", whole)


@pytest.fixture(scope="module")
def broken_off(demo, tmp_path_factory):
    """A run that broke off after step 6, with a state of step 5 and one of step 6."""
    folder = tmp_path_factory.mktemp("stopped") / "a"
    with pytest.MonkeyPatch.context() as patch:
        run_until(6, flags(demo, folder, "--save_steps", "1"), patch)
    names = [x.name for x in resume.state_files(folder)]
    assert names == ["state-00000006.pt", "state-00000005.pt"]
    return folder


@pytest.fixture
def stopped(broken_off, demo, tmp_path):
    """A copy of it, and its flags."""
    shutil.copytree(broken_off, tmp_path / "a")
    return tmp_path / "a", flags(demo, tmp_path / "a", "--save_steps", "1")


def test_a_truncated_state_falls_back_to_the_one_before(stopped, whole, capsys):
    folder, arguments = stopped
    newest = resume.state_files(folder)[0]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    train.main([*arguments, "--resume"])
    captured = capsys.readouterr()
    assert "state-00000006.pt: not a state" in captured.err
    assert "going on after step 5 of 8" in captured.out
    assert_same_end(folder, whole)


def test_states_that_cannot_be_read_at_all(stopped):
    """Starting anew is not done unasked: days of work may only need another torch."""
    folder, arguments = stopped
    for path in resume.state_files(folder):
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match="no state in it can be read; --overwrite starts anew"):
        train.main([*arguments, "--resume"])
    assert len(resume.state_files(folder)) == 2


def test_a_disk_that_does_not_answer_ends_the_run(stopped, monkeypatch):
    folder, arguments = stopped

    def load(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(InputError, match="state-00000006.pt: cannot be read: Input/output error"):
        train.main([*arguments, "--resume"])
    assert len(resume.state_files(folder)) == 2


def test_a_broken_newer_state_takes_no_place(stopped):
    folder, _ = stopped
    (folder / "state-00000500.pt").write_bytes(b"")
    torch.save({"x": 1}, folder / "state-00000501.pt")
    torch.save([1], folder / "state-00000502.pt")
    assert resume.newest_state(folder)["progress"]["step"] == 6
    resume.save_state(folder, {}, {}, {"step": 7}, "cpu")
    names = [path.name for path in resume.state_files(folder)]
    assert names == ["state-00000007.pt", "state-00000006.pt"]


class Payload:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.payload_ran = True",))


def test_a_state_with_code_is_not_run(stopped, capsys):
    import builtins

    folder, _ = stopped
    torch.save({"model": Payload()}, resume.state_files(folder)[0])
    state = resume.newest_state(folder)
    assert not hasattr(builtins, "payload_ran")
    assert state["progress"]["step"] == 5 and "not a state" in capsys.readouterr().err


def changed_relations(folder):
    relations = read(ROOT / "meta/rel2id.json")
    relations |= {"P17": relations["P19"], "P19": relations["P17"]}
    (folder / "changed.json").write_text(json.dumps(relations))
    return str(folder / "changed.json")


def changed_data(demo, folder):
    shutil.copytree(demo, folder / "data")
    with open(folder / "data/dev_revised.json", "a") as file:
        file.write(" ")
    return str(folder / "data")


def test_other_settings_data_and_relations_are_refused_by_name(stopped, demo, tmp_path):
    folder, arguments = stopped
    for more, word in (
        (["--learning_rate", "2e-3"], "started with learning_rate 0.001, not 0.002"),
        (["--data_dir", changed_data(demo, tmp_path)], "started with dev data"),
        (["--rel2id", changed_relations(tmp_path)], "started with relations"),
    ):
        with pytest.raises(InputError, match=word):
            train.main([*arguments, *more, "--resume"])
    assert len(resume.state_files(folder)) == 2, "nothing is lost"


def test_the_best_weights_and_the_state_go_together(demo, tmp_path, monkeypatch):
    """However the scores run: after every evaluation, the weights are the best state's."""
    arguments = flags(demo, tmp_path / "a", "--evaluation_steps", "1")
    scores = iter([0.1, 0.3, 0.2, 0.25, 0.5, 0.4])

    def score(*arguments, **more):
        return {"f1": next(scores), "precision": 0.0, "recall": 0.0}, []

    monkeypatch.setattr(scoring, "score", score)
    run_until(6, arguments, monkeypatch)
    state = resume.newest_state(tmp_path / "a")
    assert fit.best_of(state["progress"]["records"])["step"] == 5 == state["progress"]["step"]
    weights = load_file(tmp_path / "a" / "model.safetensors")
    assert all(torch.equal(weights[name], state["model"][name]) for name in weights)
    assert state.keys() >= {"optimizer", "schedule", "scaler", "random"}


def test_the_second_request_to_stop_is_at_once(capfd):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), resume.stop_requests() as requests:
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
    assert "once more: at once" in capfd.readouterr().err


def test_an_interrupted_run_is_not_overwritten_by_accident(stopped, whole):
    folder, arguments = stopped
    with pytest.raises(InputError, match="holds an interrupted run; add --resume"):
        train.main(arguments)
    with pytest.raises(InputError, match="--resume: neither with"):
        train.main([*arguments, "--resume", "--overwrite"])
    assert len(resume.state_files(folder)) == 2
    train.main([*arguments, "--overwrite"])
    assert_same_end(folder, whole)


def test_a_finished_run_stays_as_it_is(demo, whole, tmp_path, capsys):
    before = (whole / "results.json").stat().st_mtime_ns
    (whole / "state-00000008.pt").write_bytes(b"left by a kill at the very end")
    train.main([*flags(demo, whole), "--resume"])
    assert not resume.state_files(whole)
    assert "finished before" in capsys.readouterr().out
    train.main([*flags(demo, whole), "--resume", "--cpu_kernels", "off"])  # of another machine
    train.main([*flags(demo, whole), "--resume", "--margin", "5"])  # its default
    capsys.readouterr()
    train.main([*flags(demo, whole), "--resume", "--tune_threshold"])
    assert "without --tune_threshold; for that: train.py --load_path" in capsys.readouterr().out
    with pytest.raises(InputError, match="with loss 'HingeABL', not 'HingeABL:m3'"):
        train.main([*flags(demo, whole), "--resume", "--margin", "3"])
    with pytest.raises(InputError, match="--resume: the run in .* with seed 66, not 7"):
        train.main([*flags(demo, whole), "--resume", "--seed", "7"])
    other = changed_data(demo, tmp_path)
    with pytest.raises(InputError, match="--resume: the run in .* with dev data '"):
        train.main([*flags(demo, whole), "--resume", "--data_dir", other])
    with pytest.raises(InputError, match="--rel2id: .* has other relations than the run in"):
        train.main([*flags(demo, whole), "--resume", "--rel2id", changed_relations(tmp_path)])
    assert (whole / "results.json").stat().st_mtime_ns == before


def test_several_seeds_go_on_where_they_were(demo, tmp_path, monkeypatch, capsys):
    arguments = flags(demo, tmp_path / "a", "--num_train_epochs", "1", "--seeds", "1", "2")
    run_until(2, arguments, monkeypatch, seed=2)
    train.main([*arguments, "--resume"])
    assert "finished before" in capsys.readouterr().out
    assert all((tmp_path / f"a/seed{x}/results.json").exists() for x in (1, 2))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line_and_keeps_the_last_state(stopped, monkeypatch):
    folder, arguments = stopped
    original = torch.save

    def save(content, path):
        original(content, "/dev/full")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(
        InputError, match=r"state-00000007.pt: cannot be written: .* \(is the disk full\?\)$"
    ):
        train.main([*arguments, "--resume"])
    assert len(resume.state_files(folder)) == 2
    assert resume.newest_state(folder)["progress"]["step"] == 6
    assert not list(folder.glob(f"{UNFINISHED}*"))


@pytest.mark.slow
def test_a_full_disk_under_the_weights_is_one_line(demo, tmp_path):
    """RLIMIT_FSIZE stands for the disk: files end at 100 kB."""
    code = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    code += "import sys, train; from inputs.files import run_main; "
    code += "train.resume.save_state = lambda *_: None; "  # the states are larger
    code += "run_main(lambda: train.main(sys.argv[1:]))"
    arguments = flags(demo, tmp_path / "a", "--num_train_epochs", "1")
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "model.safetensors: cannot be written: " in result.stderr
    assert not list((tmp_path / "a").glob(f"{UNFINISHED}*"))


def test_a_kill_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    """Also where a library writes by names of its own, as safetensors does, before it moves."""
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    code = (
        "import os, signal, sys; from inputs.files import write_atomically\n"
        "def write(temporary):\n"
        "    for name in (temporary, temporary.with_name('.tmpRBwprs')):\n"
        "        name.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(sys.argv[1], write)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old" and len(list(tmp_path.glob(".*/*"))) == 2
    remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_loss_that_is_no_number_keeps_the_last_state(demo, tmp_path, monkeypatch):
    original, taken = fit.train_step, []

    def diverge(*arguments, **more):
        taken.append(original(*arguments, **more))
        return taken[-1] * float("nan") if len(taken) == 6 else taken[-1]

    monkeypatch.setattr(fit, "train_step", diverge)
    with pytest.raises(InputError, match="the loss is nan at step 6: try a smaller"):
        train.main(flags(demo, tmp_path / "a", "--save_steps", "1"))
    assert resume.newest_state(tmp_path / "a")["progress"]["step"] == 5


@pytest.mark.parametrize("is_gpu", [True, False])
def test_out_of_memory_is_one_line(demo, tmp_path, monkeypatch, is_gpu):
    def fail(*_, **__):
        if is_gpu:
            raise torch.OutOfMemoryError("CUDA out of memory")
        torch.empty(2**60)

    monkeypatch.setattr(fit, "train_step", fail)
    with pytest.raises(InputError, match="out of memory; take a smaller --train_batch_size"):
        train.main(flags(demo, tmp_path / "a"))
