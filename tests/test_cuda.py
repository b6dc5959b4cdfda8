"""What only a GPU can show; skipped without one. `bash scripts/check_gpu.sh` tells more."""

import sys

import pytest
import torch
from conftest import ROOT, flags, read

sys.path.insert(0, str(ROOT / "scripts"))

import gpu_checks

import train
from backbones import BACKBONES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")


def is_ok(outcome):
    result, said, _ = outcome
    if result == "skipped":
        pytest.skip(said)
    assert result == "ok", said


@pytest.mark.parametrize("precision", gpu_checks.PRECISIONS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_logits_and_gradients_equal_a_cpus(backbone, precision):
    is_ok(gpu_checks.check_logits("cuda", backbone, "bert", precision))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_host_waits_nowhere_in_a_step(backbone, precision):
    is_ok(gpu_checks.check_waits("cuda", backbone, precision))


def test_fp16_is_scaled_and_what_overflows_left_out():
    is_ok(gpu_checks.check_steps("cuda", "atlop", "fp16"))
    is_ok(gpu_checks.check_overflow("cuda"))


def test_a_run(demo, tmp_path):
    train.main(flags(demo, tmp_path / "a", "--device", "cuda", "--precision", "auto"))
    results = read(tmp_path / "a/results.json")
    assert results["device"] == torch.cuda.get_device_name() and len(results["test"]) > 1
    assert results["args"]["precision"] in ("bf16", "fp16")


def test_a_deterministic_run_has_the_same_bits_twice(demo, tmp_path):
    for name in "ab":
        train.main(flags(demo, tmp_path / name, "--device", "cuda", "--deterministic"))
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second
