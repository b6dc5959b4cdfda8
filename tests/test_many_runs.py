"""Many runs at once: CUDA's MPS and the line of progress, with stand-ins for all that they call."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import progress
import pytest
from conftest import ROOT

START = """
set -euo pipefail
RECIPE=bert
source '{root}'/scripts/run_many.sh
for seed in 1 2 3; do add_run ATL "$seed" --loss_type ATL; done
run_all "$@"
"""

CONTROL = """#!/usr/bin/env bash
# Stands for nvidia-cuda-mps-control: notes what it is told.
told="${1-}"
[[ "$told" ]] || told="$(cat)"
echo "$told $CUDA_MPS_PIPE_DIRECTORY ${CUDA_VISIBLE_DEVICES-}" >> "$CALLS"
[[ "$told $FAULT" != "get_server_list " ]] || echo 17
"""

PYTHON = """#!/usr/bin/env bash
# Stands for python: MPS's client and train.py note their environment. The run of seed 3 fails.
note() {
  local pipe="${CUDA_MPS_PIPE_DIRECTORY-none}" gpus="${CUDA_VISIBLE_DEVICES-none}"
  echo "$1 $pipe $gpus ${OMP_NUM_THREADS-all}" >> "$CALLS"
}
case "$*" in
  *torch.ones*)
    note client
    [[ "$FAULT" != client ]] || { echo "RuntimeError: no client"; echo "more"; exit 1; } ;;
  */train.py*"--seed 3"*) note train; exit 1 ;;
  */train.py*)
    trap 'sleep 0.3; note saved; exit 130' INT
    note train
    printf 'train:  50%%|##   | 3/6 [00:01<00:01]\\r'
    sleep "$SLEEP" ;;
  */report.py*) ;;
  *) exec {python} "$@" ;;
esac
"""

TOOLS = """bash cat dirname env grep mkdir mktemp paste rm rmdir sed sleep sort tail timeout touch
    tr xargs""".split()


@pytest.fixture
def many(tmp_path):
    """Starts three runs, where PATH has the stand-ins and TOOLS, and no GPU of this machine."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "calls").touch()
    for tool in TOOLS:
        path = shutil.which(tool) or pytest.skip(f"needs {tool}")
        (tmp_path / "bin" / tool).symlink_to(path)
    python = PYTHON.replace("{python}", sys.executable)
    smi = '#!/usr/bin/env bash\nprintf "$SMI"\n'
    stubs = {"python": python, "nvidia-cuda-mps-control": CONTROL, "nvidia-smi": smi}
    for name, text in stubs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    env = {"PATH": str(tmp_path / "bin"), "PYTHON": "python", "DATA": "data", "JOBS": "3"}
    env |= {"OUT": str(tmp_path / "out"), "CALLS": str(tmp_path / "calls"), "FAULT": ""}
    env |= {"SLEEP": "0", "SMI": "0\\n1\\n"}

    def start(process=subprocess.run, flags=(), stdout=subprocess.PIPE, **change):
        return process(
            [shutil.which("bash"), "-c", START.format(root=ROOT), "_", *flags],
            env=env | change, stdout=stdout, stderr=subprocess.PIPE, text=True,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    return start


def calls(folder):
    """[what is called, MPS's folder, visible GPUs] of every call, of python also its threads."""
    return [x.split(" ") for x in (folder / "calls").read_text().splitlines()]


def test_runs_share_gpus_through_mps(many, tmp_path):
    result = many(CUDA_VISIBLE_DEVICES="2,5")
    assert result.returncode == 1 and result.stderr == "failed: ATL-seed3\n"
    assert "the runs share the GPUs through CUDA's MPS\n" in result.stdout
    (_, folder, _), *_ = found = calls(tmp_path)
    assert found[:2] == [["-d", folder, "2,5"], ["client", folder, "0,1", "all"]]
    assert found[2][0] == "get_server_list" and found[-1] == ["quit", folder, "2,5"]
    assert sorted(found[3:-1]) == [["train", folder, x, "1"] for x in "001"]
    assert folder.startswith("/tmp/mps.") and not Path(folder).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"FAULT": "client"},
        {"FAULT": "server"},
        {"FAULT": "no command"},
        {"JOBS": "2"},
        {"SMI": "No devices were found\\n"},
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_MPS_PIPE_DIRECTORY": "/mine"},
        {"flags": ["--device", "cpu"]},
    ],
    ids=str,
)
def test_runs_go_on_without_mps(many, tmp_path, change):
    if change.get("FAULT") == "no command":
        (tmp_path / "bin/nvidia-cuda-mps-control").unlink()
    result = many(**change)
    assert result.returncode == 1 and result.stderr == "failed: ATL-seed3\n"
    told = [x[0] for x in calls(tmp_path)]
    tried = {
        "client": ["-d", "client", "quit"],
        "server": ["-d", "client", "get_server_list", "quit"],
    }
    assert told == tried.get(change.get("FAULT"), []) + 3 * ["train"]
    assert ("MPS" in result.stdout) == (len(told) > 3)
    said = "go on without CUDA's MPS, which does not work here: RuntimeError: no client\n"
    assert (said in result.stdout) == (change.get("FAULT") == "client")
    assert {x[1] for x in calls(tmp_path)[-3:]} == {change.get("CUDA_MPS_PIPE_DIRECTORY", "none")}


def test_mps_ends_after_the_interrupted_runs(many, tmp_path):
    process = many(subprocess.Popen, SLEEP="30", JOBS="2", SMI="0\\n")
    deadline = time.monotonic() + 30
    while len(calls(tmp_path)) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    process.communicate(timeout=30)
    told = [x[0] for x in calls(tmp_path)]
    assert process.returncode == 130 and told[3:] == ["train", "train", "saved", "saved", "quit"]
    assert not Path(calls(tmp_path)[0][1]).exists()
    running = subprocess.run(["ps", "-A", "-o", "pgid=,stat="], capture_output=True, text=True)
    groups = [x.split() for x in running.stdout.splitlines()]
    assert [x for x in groups if x[0] == str(process.pid) and x[1][0] != "Z"] == []


def test_progress_on_a_terminal_is_one_line(many, tmp_path):
    (tmp_path / "out/ATL-seed1").mkdir(parents=True)
    (tmp_path / "out/ATL-seed1/results.json").write_text("{}")
    ours, terminal = pty.openpty()
    process = many(subprocess.Popen, ["--train_batch_size", "2"], terminal, SLEEP="6")
    os.close(terminal)
    said = b""
    while part := read_some(ours):
        said += part
    process.communicate(timeout=30)
    # 6 steps finished, 3 of 6 done, the third run failed: 2 documents a step.
    assert b"\r\x1b[K18 of 24 documents\r\x1b[K" in said
    assert re.search(rb"\r\x1b\[K\[2 of 3\] ATL seed 2: no test F1, \d+ s\r\n", said)


def read_some(terminal):
    try:
        return os.read(terminal, 1000)
    except OSError:  # Linux, where the other end is closed
        return b""


BAR = "\rtrain:  {}%|###{}| {}/100 [01:00<01:00,  1.00it/s, loss=0.123]"


def test_progress_in_a_log_is_a_line_a_minute(tmp_path, monkeypatch, capsys):
    def bars(name, *steps):
        text = "going on\n" + "".join(BAR.format(x, " " * 7, x) for x in steps) + "\nloss 1/2"
        (tmp_path / f"{name}.log").write_text(text)

    names = "finished before resumed waiting failed new".split()
    for name in names:
        (tmp_path / name).mkdir()
    bars("finished", 0, 100)
    for name in ("finished", "before"):  # one without its log
        (tmp_path / name / "results.json").write_text("{}")
    (tmp_path / "resumed/state-00000040.pt").touch()
    (tmp_path / "waiting/state-00000020.pt").touch()
    (tmp_path / "waiting/state-00000030.pt").touch()
    bars("failed", 0, 10)
    (tmp_path / "failures").write_text("failed\n")
    now = 0

    def sleep(seconds):
        nonlocal now
        now += seconds
        if now == 10:
            bars("resumed", 40, 60)
        elif now == 70:
            bars("resumed", 40, 60, 90)
        elif now == 130:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    flags = "--train_batch_size 4 --gradient_accumulation_steps 2 --train_batch_size=3"
    runs = [str(tmp_path / name) for name in names]
    monkeypatch.setattr(sys, "argv", ["", flags, str(tmp_path / "failures"), *runs])
    with pytest.raises(KeyboardInterrupt):
        progress.main()
    # In all 5 runs of 100 steps of 6 documents, and what the failed one did. Done at first are
    # 100 + 100 + 40 + 30 + 10 steps.
    assert capsys.readouterr().out.splitlines() == [
        "1,800 of 3,060 documents, about 105 s left",  # 20 steps in 10 s, 210 to go
        "1,980 of 3,060 documents, about 4 min left",  # 50 steps in 70 s, 180 to go
    ]


def test_time_left():
    assert progress.line(50, 100, 1, 2.0) == "50 of 100 documents, about 100 s left"
    assert progress.line(9000, 10000, 10, 72.0) == "9,000 of 10,000 documents, about 2 h 0 min left"
    assert progress.line(100, 100, 50, 2.0) == "100 of 100 documents"
