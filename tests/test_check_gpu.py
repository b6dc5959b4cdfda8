"""scripts/check_gpu.py, as far as a CPU can tell: its table, its file and its exit codes."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, read

sys.path.insert(0, str(ROOT / "scripts"))

import check_gpu
import gpu_checks

import losses
from backbones import BACKBONES


def run(folder, *flags, **more):
    command = ["bash", str(ROOT / "scripts/check_gpu.sh"), *flags]
    env = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | more
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_all_that_a_cpu_can(tmp_path):
    result = run(tmp_path, "--device", "cpu")
    assert result.returncode == 0, result.stdout + result.stderr
    content = read(tmp_path / "check_gpu.json")
    assert content["machine"]["torch"] == torch.__version__
    rows = {f"{x['group']} {x['name']}": x for x in content["checks"]}
    assert {x["group"] for x in rows.values()} == set(check_gpu.GROUPS)
    skipped = {name.split()[0] for name, x in rows.items() if x["result"] == "skipped"}
    assert skipped == {"waits", "processes"}
    assert all("CUDA" in x["said"] for x in rows.values() if x["result"] == "skipped")
    for backbone in BACKBONES:
        error = [rows[f"logits {backbone} bert {x}"]["logits"] for x in ("fp32", "fp16", "bf16")]
        assert 0 < error[0] < error[1] < error[2]
    assert {f"losses {name}" for name in losses.LOSSES} <= rows.keys()
    assert rows["steps atlop fp16"]["scale"] > 1 == rows["steps atlop bf16"]["scale"]
    assert "killed; going on after step " in rows["resume after SIGKILL"]["said"]
    speed = rows["speed small"]
    assert speed["train_documents_per_second"] > 0 and speed["peak_gib"] is None
    lines = result.stdout.splitlines()
    assert sum(x.startswith(("ok ", "FAILED ", "skipped ")) for x in lines) == len(rows)
    cells = [[cell.strip() for cell in x.split("|")[1:-1]] for x in lines if x.startswith("|")]
    table = {x[0]: x[1:4] for x in cells}
    assert table["check"] == ["ok", "FAILED", "skipped"]
    assert table["losses"] == [str(len(losses.LOSSES)), "0", "0"]
    assert table["waits"] == ["0", "0", "8"]
    assert lines[-1] == "all numbers: check_gpu.json"


def check(tmp_path, *only):
    """Exit code and rows of a run in this process."""
    output, code = tmp_path / "a.json", 0
    try:
        check_gpu.main(["--device", "cpu", "--output", str(output), "--only", *only])
    except SystemExit as end:
        code = end.code
    return code, {x["name"]: x for x in read(output)["checks"]}


def test_a_broken_loss_fails_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    """One that is no number, and one whose value on the device is another."""

    def wrong(logits, labels):
        return losses.sat_loss(logits, labels) * (1.01 if logits.dtype == torch.float32 else 1)

    broken = {"ATL": lambda x, y: losses.atl_loss(x, y) * torch.nan, "SAT": wrong}
    for name, function in broken.items():
        monkeypatch.setitem(losses.LOSSES, name, (function, {}))
    code, rows = check(tmp_path, "losses")
    assert code == 1
    assert {x for x, row in rows.items() if row["result"] == "FAILED"} == {"ATL", "SAT"}
    assert rows["SAT"]["value"] == pytest.approx(0.01, abs=1e-4) and rows["ATL"]["value"] == "nan"
    said = capsys.readouterr().out
    assert "\nFAILED: losses ATL, losses SAT\n" in said
    assert "FAILED  losses    SAT                  error of value 1.0e-02" in said


def test_a_check_that_raises_says_where(tmp_path, monkeypatch):
    def broken(logits, labels):
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    monkeypatch.setitem(losses.LOSSES, "AML", (broken, {}))
    code, rows = check(tmp_path, "losses")
    row = rows["AML"]
    assert code == 1 and [x["result"] for x in rows.values()].count("FAILED") == 1
    assert row["said"].startswith("RuntimeError: CUDA error: an illegal memory access (test_check_")
    assert "in broken" in row["traceback"]


def test_out_of_memory_at_a_size_fails_nothing(tmp_path, monkeypatch):
    def train_for(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(gpu_checks, "train_for", train_for)
    code, rows = check(tmp_path, "speed")
    assert code == 0 and rows["small"]["result"] == "skipped"
    assert rows["small"]["said"].startswith("out of memory: CUDA out of memory. Tried")


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_a_loss_that_does_not_fall_fails(monkeypatch):
    def stuck(model, *rates, **more):
        return torch.optim.SGD(model.parameters(), lr=0.0)

    monkeypatch.setattr(gpu_checks, "make_optimizer", stuck)
    result, said, _ = gpu_checks.check_steps("cpu", "atlop", "bf16")
    assert result == "FAILED" and said.startswith("loss 0.")


def test_without_a_gpu_one_line(tmp_path):
    result = run(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2 and result.stdout == "" and os.listdir(tmp_path) == []
    assert result.stderr.startswith("error: no CUDA card can be used: torch ")
    assert len(result.stderr.splitlines()) == 1
