"""The shell scripts, with a stand-in for training."""

import os
import shutil
import stat
import subprocess
import sys

import pytest
from conftest import ROOT, read
from made_runs import write_run

from engine.command_line import parse_runs

STUB = """#!{python}
# Stands for python: train.py copies a finished run and puts in the flags; all else is real.
import json, os, sys
if not sys.argv[1].endswith("train.py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
given = dict(zip(sys.argv[2:], sys.argv[3:]))
for name in ("entropy_weight", "ncrl_shift", "positive_weight"):
    if "--" + name in sys.argv:
        place = sys.argv.index("--" + name) + 1
        numbers = [float(x) for x in sys.argv[place : place + (2 if name[0] == "e" else 1)]]
        given["--" + name] = numbers if name[0] == "e" else numbers[0]
if given["--loss_type"] == "AML":
    sys.exit("error: AML fails here")
if os.path.exists(given["--output_dir"] + "/results.json"):  # as train.py does with --resume
    sys.exit("error: other flags" if "--fail" in sys.argv else 0)
results = json.load(open({template!r}))
for name, kind in (("loss_type", str), ("seed", int), ("margin", float), ("hinge_norm", str),
                   ("entropy_weight", list), ("ncrl_shift", float), ("positive_weight", float),
                   ("backbone", str), ("evidence_weight", float)):
    if "--" + name in given:
        results["args"][name] = kind(given["--" + name])
os.makedirs(given["--output_dir"])
json.dump(results, open(given["--output_dir"] + "/results.json", "w"))
print("tunes:", "--tune_threshold" in sys.argv)
"""


FAKE_PYTHON = """#!/usr/bin/env bash
# Stands for python: venv makes a folder with this file, pip prints what the real one may.
echo "$*" >>"$CALLS"
case "$1 $2" in
  "-m venv")
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    [[ "$FAULT" != killed ]] || kill -9 0
    echo "venv speaks"; [[ "$FAULT" != venv ]] ;;
  "-m pip")
    echo "WARNING: a mirror is ignored"; echo "WARNING: root runs pip" >&2; [[ "$FAULT" != pip ]] ;;
esac
"""


@pytest.fixture
def fresh(tmp_path):
    """Runs one of the scripts where no environment is; gives the result and python's calls."""
    shutil.copytree(ROOT / "scripts", tmp_path / "repo/scripts")
    for file in ROOT.glob("requirements*.txt"):
        shutil.copy(file, tmp_path / "repo")
    (tmp_path / "repo/scripts/run.sh").write_text(
        "set -euo pipefail\nsource scripts/setup.sh\necho ran"
    )
    (tmp_path / "bin").mkdir()
    python, calls = tmp_path / "bin/python3", tmp_path / "calls"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    path = f"{python.parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHON": "", "TORCH": "", "CALLS": str(calls)}

    def start(fault="", name="run.sh", more=(), **change):
        calls.write_text("")
        result = subprocess.run(
            ["bash", f"scripts/{name}", *more],
            cwd=tmp_path / "repo", env=env | {"FAULT": fault} | change, capture_output=True,
            text=True, start_new_session=True,  # a killed one takes nothing else along
        )  # fmt: skip
        said = calls.read_text().splitlines()
        modules = [x for x in said if x.startswith("-m")]
        return result, [x.split()[1] for x in modules], modules, said

    return start


MADE = "making a virtual environment, .venv ..."
INSTALLED = "installing requirements.txt into .venv (once; a minute or a few) ..."


def test_setup_says_a_line_for_each_step(fresh):
    result, steps, calls, _ = fresh()
    assert result.returncode == 0 and result.stdout == "ran\n"
    assert result.stderr.splitlines() == [MADE, INSTALLED]
    assert steps == ["venv", "pip"] and " torch==2.13.0 " in calls[1]
    result, steps, *_ = fresh()
    assert (result.stdout, result.stderr, steps) == ("ran\n", "", [])


def test_another_torch_stays_chosen(fresh):
    fresh()
    _, steps, calls, _ = fresh(TORCH="torch==2.8.0")
    assert steps == ["pip"] and " torch==2.8.0 " in calls[0]
    assert fresh()[1] == fresh(TORCH="torch==2.8.0")[1] == []


def test_a_newer_python_beside_an_old_one_is_found(fresh, tmp_path):
    (tmp_path / "bin/python3").rename(tmp_path / "bin/python3.14")
    for name in "python3", "python":
        (tmp_path / f"bin/{name}").write_text("#!/usr/bin/env bash\nexit 1\n")
        (tmp_path / f"bin/{name}").chmod(0o755)
    result, steps, *_ = fresh()
    assert result.stdout == "ran\n" and steps == ["venv", "pip"]


def test_the_demo_overwrites_its_own_folder_alone(fresh):
    for more, overwrites in ([], True), (["--resume"], False), (["--output_dir", "a"], False):
        calls = fresh(name="run_demo.sh", more=more)[3]
        assert ("--overwrite" in calls[-1]) == overwrites and "train.py" in calls[-1]


def test_tests_install_what_they_need(fresh):
    result, steps, calls, _ = fresh(name="test.sh")
    assert result.returncode == 0 and "WARNING" not in result.stdout + result.stderr
    assert steps == ["venv", "pip", "pip", "ruff", "ruff", "tach", "pytest"]
    assert calls[2].endswith("-r requirements-dev.txt")
    _, steps, *_ = fresh(name="test.sh")
    assert steps == ["ruff", "ruff", "tach", "pytest"]


def test_a_failed_installation_shows_all_and_is_done_again(fresh):
    for expected in (["venv", "pip"], ["pip"]):
        result, steps, *_ = fresh("pip")
        assert result.returncode == 2 and result.stdout == "" and steps == expected
        said = result.stderr.splitlines()[-3:]
        assert said[:2] == ["WARNING: a mirror is ignored", "WARNING: root runs pip"]
        assert said[2].startswith("error: pip could not install requirements.txt; ")
    result, steps, *_ = fresh()
    assert result.stdout == "ran\n" and result.stderr == f"{INSTALLED}\n" and steps == ["pip"]


@pytest.mark.parametrize("fault,code", [("venv", 2), ("killed", -9)])
def test_an_environment_cut_off_in_the_making_is_made_again(fresh, fault, code):
    result, steps, *_ = fresh(fault)
    assert result.returncode == code and steps == ["venv"]
    if fault == "venv":
        assert result.stderr.splitlines()[:2] == [MADE, "venv speaks"]
        assert "error: " in result.stderr.splitlines()[2]
    result, steps, *_ = fresh()
    assert result.stdout == "ran\n" and steps == ["venv", "pip"]


@pytest.fixture
def table3(data, tmp_path):
    """What starts run_table3.sh, train.py being a stub, and the finished run that it copies."""
    run = write_run(tmp_path / "finished", data, "ATL", 1, logits=False)
    template = str(run / "results.json")
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, template=template))
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    cut = {"SEEDS": "1 5", "LOSSES": "ATL HingeABL:joint:m3 HingeABL:m5 AML", "RECIPE": "bert"}
    where = {"PYTHON": str(stub), "DATA": str(data), "OUT": str(tmp_path / "out")}

    def start(name="run_table3.sh", flags=(), **change):
        command = ["bash", str(ROOT / "scripts" / name), "--num_train_epochs", "1", *flags]
        env = os.environ | cut | where | change
        return subprocess.run(command, env=env, capture_output=True, text=True)

    return start, run


@pytest.mark.slow
def test_run_table3(table3, tmp_path):
    start, run = table3
    shutil.copytree(run, tmp_path / "out/ATL-seed1")
    first = (tmp_path / "out/ATL-seed1/results.json").stat().st_mtime_ns
    others = ["PMTEM:w0.1,0.5", "PMTEM:w1,1", "NCRL:s0.05", "ATGL:w4"]
    result = start(LOSSES=" ".join(["ATL HingeABL:joint:m3 HingeABL:m5 AML", *others]))
    lines = [x for x in result.stdout.splitlines() if x[0] == "["]
    assert result.returncode == 1 and result.stderr.strip() == "failed: AML-seed1 AML-seed5"
    assert len(lines) == 16 and lines[0].endswith("finished before")
    assert lines[1].startswith("[2 of 16] HingeABL-joint-m3 seed 1: test F1 ")
    assert "failed after" in lines[3] and "error: AML fails here" in lines[3]
    assert (tmp_path / "out/ATL-seed1/results.json").stat().st_mtime_ns == first
    again = start(LOSSES="HingeABL", flags=["--fail"])
    assert again.returncode == 1 and again.stderr.strip() == "failed: HingeABL-seed1 HingeABL-seed5"
    assert again.stdout.startswith("2 runs, 0 to do;")
    assert "[1 of 2] HingeABL seed 1: failed after" in again.stdout
    assert again.stdout.count("error: other flags\n") == 2  # and no log of before
    logs = [(tmp_path / f"out/HingeABL-seed{x}.log").read_text() for x in (1, 5)]
    assert logs == ["tunes: True\n"] * 2
    group = read(tmp_path / "out/report/report.json")["groups"][0]
    seeds = {
        x["name"]: {row["loss"]: row["seeds"] for row in x["rows"] if row["seeds"]}
        for x in group["tables"]
    }
    assert seeds["Table 3"] == {x: [1, 5] for x in ("ATL", "HingeABL", "HingeABL:joint:m3")}
    later = ["PMTEM", "PMTEM:w0.1,0.5", "NCRL:s0.05", "ATGL:w4"]
    assert seeds["Other losses"] == {x: [1, 5] for x in later}
    result = start(LOSSES="ATL:m3")
    assert result.returncode == 2 and "error: LOSSES: ATL:m3: :m3 is unknown" in result.stderr


@pytest.mark.slow
def test_run_table2(table3, tmp_path):
    start, _ = table3
    backbones = "docunet kd_docre dreeam:e0.1"
    out = tmp_path / "a folder's $(name)"
    result = start(name="run_table2.sh", BACKBONES=backbones, SEEDS="1", OUT=str(out))
    assert result.returncode == 0, result.stderr
    group = read(out / "report/report.json")["groups"][0]
    rows = [(x["backbone"], x["loss"]) for x in group["tables"][1]["rows"]]
    taught = "dreeam (evidence_weight 0.1)"
    assert rows[6:] == [(taught, "ATL"), (taught, "HingeABL")]  # after the paper's
    ran = [x for x in group["tables"][1]["rows"] if x["seeds"]]
    own = ["balance_softmax", "AFL", "ATL"]
    assert [x["loss"] for x in ran] == [x for loss in own for x in (loss, "HingeABL")]
    assert (out / "dreeam-e0.1-HingeABL-seed1").is_dir()
    result = start(name="run_table2.sh", BACKBONES="dream")
    assert result.returncode == 2 and "error: BACKBONES: dream" in result.stderr


@pytest.mark.parametrize("name,given,expected", [
    ("bert", {}, "5e-5 1e-4 4 30 HingeABL atlop"),
    ("roberta", {"LOSS": "AFL", "BACKBONE": "docunet"}, "3e-5 1e-4 4 30 AFL docunet"),
    ("minilm", {"LOSS": "ATL", "BACKBONE": "dreeam"}, "1e-4 5e-4 4 10 ATL dreeam"),
])  # fmt: skip
def test_recipes_are_flags_of_train(tmp_path, monkeypatch, name, given, expected):
    monkeypatch.chdir(tmp_path)  # where no run is
    stub = tmp_path / "python"
    stub.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    env = os.environ | {"PYTHON": str(stub), "REDOCRED_DIR": "/d", "ENCODER": "e"} | given
    command = ["bash", str(ROOT / f"scripts/run_{name}.sh"), "--device", "cpu"]
    said = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout
    script, *arguments = said.splitlines()
    (run,) = parse_runs(arguments)
    found = run.learning_rate, run.classifier_lr, run.train_batch_size, run.num_train_epochs
    *numbers, loss, backbone = expected.split()
    assert [*found, run.loss_type, run.backbone] == [*map(float, numbers), loss, backbone]
    assert script == str(ROOT / "train.py") and run.data_dir == "/d"
    encoder = {"bert": "bert-base-cased", "roberta": "roberta-large", "minilm": "e"}[name]
    assert run.output_dir == f"runs/{encoder}-{backbone}-{loss}-seed66"


def test_run_predict_gives_its_model_and_page(fresh):
    *_, said = fresh(name="run_predict.sh", more=["a.txt", "--format", "graphml"], NER="x")
    arguments = said[-1].split()
    flags = dict(zip(arguments, arguments[1:], strict=False))  # of one given twice, the last
    assert flags["--model"].endswith("pretrained/redocred-minilm") and flags["--ner"] == "x"
    assert flags["--html"].endswith("runs/relations.html") and flags["--text"] == "a.txt"
    assert flags["--format"] == "graphml"
    result, *_ = fresh(name="run_predict.sh", NER="x")
    assert result.returncode == 2 and "error: no text given" in result.stderr


def test_gpus_are_processes(tmp_path):
    stub = tmp_path / "python"
    stub.write_text('#!/usr/bin/env bash\necho "$@"\n')
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)

    def started(**more):
        env = os.environ | {"PYTHON": str(stub), "ENCODER": "e"} | more
        command = ["bash", str(ROOT / "scripts/run_minilm.sh"), "--data_dir", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout

    plain = started()
    assert plain.startswith(f"{ROOT}/train.py --data_dir {tmp_path} ")
    options = "-m torch.distributed.run --standalone --nproc_per_node 4"
    assert started(GPUS="4") == f"{options} {plain}"
    assert started(GPUS="1") == plain
