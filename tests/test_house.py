"""Where the code lies: eight scripts at the root, floors above one another, no circle."""

import ast
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import ROOT

SCRIPTS = "train predict report evaluation model prepro losses utils".split()
FOLDERS = "inputs encoders backbones engine reporting viewing".split()
OPTIONAL = {"wandb", "spacy"}


def files():
    """Module name -> path, of what tach.toml is about."""
    paths = [*ROOT.glob("*.py"), *(x for name in FOLDERS for x in (ROOT / name).glob("*.py"))]
    names = {".".join(x.relative_to(ROOT).with_suffix("").parts): x for x in paths}
    return {name.removesuffix(".__init__"): path for name, path in names.items()}


def imported(node):
    """The modules that an import names; of `from package import name` also package.name."""
    if isinstance(node, ast.Import):
        return [x.name for x in node.names]
    return [node.module, *(f"{node.module}.{x.name}" for x in node.names)]


def imports(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_the_root_holds_eight_scripts():
    assert sorted(x.stem for x in ROOT.glob("*.py")) == sorted(SCRIPTS)
    for path in files().values():
        assert len(path.read_text().splitlines()) < 500, path


def test_no_circle():
    known, graph = files(), {}
    for name, path in known.items():
        found = {x for node in imports(ast.parse(path.read_text())) for x in imported(node)}
        graph[name] = (found & known.keys()) - {name}
        if path.stem == "__init__":  # a package's own files are read while it is
            graph[name] -= {x for x in found if x.startswith(f"{name}.")}
    assert sum(map(len, graph.values())) > 80
    list(TopologicalSorter(graph).static_order())  # raises CycleError
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph | {"inputs.files": {"train"}}).static_order())


def test_imports_in_functions_are_of_optional_packages():
    for name, path in files().items():
        tree = ast.parse(path.read_text())
        functions = [x for x in ast.walk(tree) if isinstance(x, ast.FunctionDef)]
        inside = {x for function in functions for node in imports(function) for x in imported(node)}
        assert {x.split(".")[0] for x in inside} <= OPTIONAL, (name, inside)


@pytest.fixture
def copy(tmp_path):
    for path in files().values():
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    shutil.copy(ROOT / "tach.toml", tmp_path)
    return tmp_path


def check(folder):
    result = subprocess.run(
        [sys.executable, "-m", "tach", "check"], cwd=folder, capture_output=True, text=True
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("file,line", [
    ("inputs/files.py", "import model"),
    ("encoders/mention_attention.py", "from engine import options"),
    ("model.py", "from backbones import BACKBONES"),
    ("engine/fit.py", "import train"),
    ("reporting/tables.py", "from viewing import page"),
])  # fmt: skip
def test_a_broken_floor_fails(copy, file, line):
    assert check(copy)[0] == 0
    path = copy / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    code, said = check(copy)
    assert code == 1 and f"{file}:" in said
