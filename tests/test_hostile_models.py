"""Models, logits and checkpoints, changed and broken; no code in a file is run."""

import ast
import gzip
import json
import random
import shutil
import sys
from collections import Counter
from itertools import chain

import pytest
import torch
from conftest import ROOT, read
from hostile import BYTES, Payload, as_bytes, every_change, hostile_arrays, outcome, predicts

import evaluation
from encoders.loading import build_encoder, load_tokenizer
from engine.checkpoint import load_state
from engine.command_line import parse_runs
from evaluation import read_logits


def test_logits_files(tmp_path):
    path, seen, sound = tmp_path / "dev_logits.npz", Counter(), []
    for name, content in hostile_arrays():
        path.write_bytes(content)
        arrays, message = outcome(lambda: read_logits(path), path)
        seen[message is None] += 1
        if message is None:
            assert sum(evaluation.count_patterns(**arrays)[x] for x in evaluation.PATTERNS) == 4
            sound.append(name)
    print("logits: read, refused", seen[True], seen[False])
    assert {"sound", "float16"} <= set(sound) and seen[False] > 60
    assert all(name in ("sound", "float16") or name.startswith("byte") for name in sound), sound
    assert not Payload.ran


@pytest.fixture
def model_folder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model"


def test_every_change_of_a_models_configuration(model_folder):
    path, seen = model_folder / "config.json", Counter()
    base = read(path)
    values = [None, True, 0, -1, 1, 10**9, 10**30, 1.5, "", "x", "\ud800", [], {}, {"a": 1}]
    values += [float("nan"), "llama", "resnet", "../../x"]
    contents = chain(
        ((what, as_bytes(value)) for what, value in every_change(base, values, step=11)),
        ((name, BYTES[name](as_bytes(base))) for name in list(BYTES)[::5]),
    )
    for _, content in contents:
        path.write_bytes(content)
        message = outcome(lambda: predicts(model_folder))[1]
        seen[message is None] += 1
        command = ["--load_path", str(model_folder), "--device", "cpu"]
        outcome(lambda command=command: parse_runs(command))
    print("config.json: read, refused", seen[True], seen[False])
    assert seen[True] > 30 and seen[False] > 50


def test_weights_that_are_none(model_folder):
    path, seen = model_folder / "model.safetensors", Counter()
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    header = content[8:size]
    cases = [content[: len(content) * i // 20] for i in range(20)]
    cases += [content[: size * i // 20] for i in range(20)]
    cases += [content[:8] + header.replace(a, b, 1) + content[size:] for a, b in [
        (b"F32", b"I32"), (b"F32", b"F16"), (b"F32", b"XXX"), (b"[0,", b"[9,"), (b"[32", b"[31"),
        (b"[32", b"[-1"), (b'"dtype"', b'"dtyqe"'), (b"head_", b"\x1b[2J"), (b"head_", b"\xff____"),
    ]]  # fmt: skip
    for size in (0, 7, 2**31, 2**63, 2**64 - 1):
        cases.append(size.to_bytes(8, "little") + content[8:])
    for number in (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff"):  # not a number, -infinity
        cases.append(content[:-4] + number)
    cases += [b"", b"{}", b"\x80\x04.", gzip.compress(content), content + b"x"]
    cases.append((2).to_bytes(8, "little") + b"{}")
    for case in cases:
        path.write_bytes(case)
        message = outcome(lambda: predicts(model_folder), path)[1]
        seen[message is None] += 1
    print("model.safetensors: read, refused", seen[True], seen[False])
    assert seen[False] >= len(cases) - 1
    path.write_bytes(content)
    assert predicts(model_folder)["relations"]
    path.unlink()
    assert "no such file" in outcome(lambda: predicts(model_folder), path)[1]


def test_tokenizers_that_are_none(model_folder):
    seen = Counter()
    for path in sorted(model_folder.glob("*token*")):
        content = path.read_bytes()
        base = json.loads(content)
        if "model" in base:  # its vocabulary is long
            base["model"]["vocab"] = dict(list(base["model"]["vocab"].items())[:6])
        values = [None, True, -1, 10**30, 1.5, "x", "\ud800", [], {}, [["x"]]]
        cases = [as_bytes(value) for _, value in every_change(base, values)]
        cases = random.Random(1).sample(cases, min(len(cases), 25))
        whole = json.loads(content)
        if "model" in whole:
            for number in (10**6, 7000, 2**32 - 1):
                vocabulary = whole["model"]["vocab"] | {"a": number, "##a": number}
                cases.append(as_bytes(whole | {"model": whole["model"] | {"vocab": vocabulary}}))
        for case in [*cases, *(change(content) for change in list(BYTES.values())[::8])]:
            path.write_bytes(case)
            message = outcome(lambda: predicts(model_folder))[1]
            seen[message is None] += 1
        path.write_bytes(content)
    print("tokenizer: read, refused", seen[True], seen[False])
    assert seen[True] > 5 and seen[False] > 40
    assert predicts(model_folder)["relations"]


# --- Code in files ----------------------------------------------------------------------------

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_NAMES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "yaml", "imp"}
FORBIDDEN_FLAGS = {"allow_pickle": True, "weights_only": False, "trust_remote_code": True}


def what_runs_code(tree):
    """What in a piece of Python could run code of a file that it reads."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [getattr(node, "module", None) or "", *(x.name for x in node.names)]
            yield from (x for name in names for x in name.split(".") if x in FORBIDDEN_NAMES)
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            given = {x.arg: ast.literal_eval(x.value) for x in node.keywords
                     if isinstance(x.value, ast.Constant)}  # fmt: skip
            if function in FORBIDDEN_CALLS or function.split(".")[-1] in ("extractall", "system"):
                yield function
            yield from (k for k, bad in FORBIDDEN_FLAGS.items() if given.get(k) is bad)
            if any(x.arg == "shell" for x in node.keywords):
                yield "shell"
            if function == "torch.load" and given.get("weights_only") is not True:
                yield "torch.load without weights_only"
            if function == "np.load" and given.get("allow_pickle") is not False:
                yield "np.load without allow_pickle"
            if function.endswith((".from_pretrained", ".from_config")) and function[:4] == "Auto":
                options = ast.unparse(node)
                if given.get("trust_remote_code") is not False and "**options" not in options:
                    yield "transformers may ask to run code"


def test_no_code_of_files_is_run():
    paths = [
        x
        for x in ROOT.rglob("*.py")
        if not {"tests", ".venv", "runs"} & {*x.relative_to(ROOT).parts}
    ]
    assert len(paths) > 20
    for path in paths:
        assert list(what_runs_code(ast.parse(path.read_text(encoding="utf-8")))) == [], path


def test_what_runs_code_is_found():
    for code in (
        "import pickle", "from six.moves import cPickle", "np.load(x, allow_pickle=True)",
        "np.load(x)", "torch.load(x)", "torch.load(x, weights_only=False)", "eval(x)", "exec(x)",
        "import yaml", "AutoModel.from_pretrained(x)", "f(trust_remote_code=True)", "os.system(x)",
        "subprocess.run(x, shell=True)",
    ):  # fmt: skip
        assert list(what_runs_code(ast.parse(code))), code


CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("payload ran")
from transformers import {base}
class Hostile({base}):
    model_type = "hostile"
"""


@pytest.mark.parametrize("model_type", ["hostile", "bert"])
def test_code_beside_an_encoder_is_not_run(tmp_path, monkeypatch, folder, model_type):
    """Neither as encoder nor as tokenizer, and nobody is asked whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    mark, at = tmp_path / "ran", tmp_path / "encoder"
    at.mkdir()
    for name, base in {
        "config": "PretrainedConfig",
        "model": "PreTrainedModel",
        "tok": "PreTrainedTokenizer",
    }.items():
        (at / f"{name}_x.py").write_text(CODE.format(mark=str(mark), base=base))
    automatic = {"AutoConfig": "config_x.Hostile", "AutoModel": "model_x.Hostile"}
    automatic |= {"AutoTokenizer": ["tok_x.Hostile", "tok_x.Hostile"]}
    encoder = read(folder / "config.json")["encoder"]
    config = encoder | {"model_type": model_type, "auto_map": automatic}
    (at / "config.json").write_text(json.dumps(config))
    (at / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Hostile", "auto_map": automatic})
    )
    outcome(lambda: build_encoder(at, weights=False))
    outcome(lambda: build_encoder(at))
    outcome(lambda: load_tokenizer(at))
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    shutil.copytree(at, run, dirs_exist_ok=True)
    saved = read(folder / "config.json")
    (run / "config.json").write_text(json.dumps(saved | {"encoder": config, "auto_map": automatic}))
    outcome(lambda: predicts(run))
    assert not mark.exists()
    loaded = {name.split(".")[-1] for name in sys.modules}
    assert not loaded & {"config_x", "model_x", "tok_x"}


def test_a_checkpoint_of_code_is_not_run(tmp_path):
    for content in ({"a": Payload()}, Payload(), {"checkpoint": {"x": Payload()}}):
        for legacy in (False, True):
            torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=legacy)
            assert "not a checkpoint" in outcome(lambda: load_state(tmp_path / "a.pt"), "a.pt")[1]
    assert not Payload.ran
