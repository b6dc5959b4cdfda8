"""Where the code lies: eight scripts at the root, floors above one another."""

import ast
import shutil
import subprocess
import sys

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


def test_a_broken_floor_fails(copy):
    assert check(copy)[0] == 0
    for file, line in ("inputs/files.py", "import model"), ("engine/fit.py", "import train"):
        path = copy / file
        path.write_text(f"{path.read_text()}\n{line}\n")
        code, said = check(copy)
        assert code == 1 and f"{file}:" in said
