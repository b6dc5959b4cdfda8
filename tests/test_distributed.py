"""Several processes against one: same weights and scores; a process that dies; one line each."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, read, small_model, with_dropout
from safetensors.torch import load_file
from test_resume import assert_same_end
from test_train import flags, without_times

import train
from engine import distributed, resume
from engine.command_line import parse_runs
from inputs.files import InputError, write_json


def start(*arguments, processes=2):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", str(ROOT / "train.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def said(process):
    """The lines of standard error that are train.py's own; waits for the end."""
    errors = process.communicate(timeout=300)[1]
    return [x for x in errors.splitlines() if x.startswith(("error:", "stopped", "Runtime"))]


@pytest.fixture(scope="module")
def steady(demo, tmp_path_factory):
    """The demo without dropout, and with documents of one entity, so that a process has no pair."""
    folder = tmp_path_factory.mktemp("steady") / "demo"
    shutil.copytree(demo, folder)
    documents = read(folder / "train_revised.json")
    for document in documents[::3]:
        document |= {"vertexSet": document["vertexSet"][:1], "labels": []}
    write_json(folder / "train_revised.json", documents)
    return with_dropout(folder, 0.0)


@pytest.mark.slow
def test_two_processes_train_as_one_does(steady, finished, tmp_path):
    """20 steps, of two batches each, taught, too."""
    more = "--train_batch_size", "2", "--gradient_accumulation_steps", "2", "--tune_threshold"
    more += "--num_train_epochs", "5", "--group_by_length", "--backbone", "kd_docre"
    more += "--teacher", str(finished), "--teacher_evidence", "1", "--teacher_memory", "0"
    one, two = tmp_path / "one", tmp_path / "two"
    process = start(*flags(steady, two, *more))
    train.main(flags(steady, one, *more))
    assert said(process) == [] and process.returncode == 0
    assert sorted(os.listdir(one)) == sorted(os.listdir(two))
    ours, theirs = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)
    assert read(one / "predictions.json") == read(two / "predictions.json")
    ours, theirs = without_times(one), without_times(two)
    assert [x.pop("loss") for x in ours] == pytest.approx([x.pop("loss") for x in theirs], 1e-5)
    assert ours == theirs
    ours, theirs = read(one / "results.json"), read(two / "results.json")
    assert (ours["processes"], theirs["processes"]) == (1, 2)
    assert all(ours[name] == theirs[name] for name in ("dev", "test", "best", "data"))


def wait_for_state(process, output):
    while not resume.state_files(output):
        assert process.poll() is None
        time.sleep(0.05)


def process_of(rank, output):
    """The process id of a rank of the run into this folder."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(output).encode() in command and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_process_that_is_killed_ends_the_run_which_goes_on(demo, tmp_path):
    """The first of two, which saves, is killed; with dropout."""
    whole, output = tmp_path / "whole", tmp_path / "a"
    assert said(start(*flags(demo, whole, "--num_train_epochs", "6"))) == []
    arguments = flags(demo, output, "--num_train_epochs", "6", "--save_steps", "1")
    for _ in range(3):  # on a busy machine torchrun can end the other before it says a word
        shutil.rmtree(output, ignore_errors=True)
        process = start(*arguments)
        wait_for_state(process, output)
        os.kill(process_of(0, output), signal.SIGKILL)
        lines = said(process)
        assert process.returncode != 0
        if lines:
            break
    assert lines == [
        "error: process 1 of 2: another process of this run ended; the same command with --resume "
        "goes on from the last saved step"
    ]
    process = start(*arguments, "--resume")
    assert said(process) == [] and process.returncode == 0
    assert_same_end(output, whole)


def test_a_batch_is_divided_among_the_processes(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="3 documents cannot be divided among 2 processes"):
        parse_runs(flags(demo, tmp_path / "a", "--train_batch_size", "3"))


def test_docunet_needs_gpus_and_images_of_one_size():
    model = small_model(backbone="docunet")
    with pytest.raises(InputError, match="trains in several processes on GPUs only"):
        model.check_processes("cpu", 5)
    with pytest.raises(InputError, match="--max_height: 12 is less than the 13 entities"):
        model.check_processes("cuda", 13)
    model.check_processes("cuda", 12)


def test_processes_see_all_items_once(monkeypatch):
    for count, length in [(1, 5), (2, 5), (4, 3), (3, 9)]:
        monkeypatch.setenv("WORLD_SIZE", str(count))
        parts = []
        for rank in range(count):
            monkeypatch.setenv("RANK", str(rank))
            parts.append(distributed.own_part(list(range(length))))
        assert sum(parts, []) == list(range(length))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_processes_that_cannot_connect_say_so(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(InputError, match="process 1: no connection to the others: .*MASTER_PORT"):
        train.main(["--data_dir", "nowhere"])
