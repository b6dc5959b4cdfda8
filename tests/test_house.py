"""Where the code lies. Its floors, and imports in functions, are checked by tach and ruff."""

from conftest import ROOT

SCRIPTS = "train predict report evaluation model prepro losses utils".split()
FOLDERS = "inputs encoders backbones engine reporting viewing".split()


def test_the_root_holds_eight_scripts():
    assert sorted(x.stem for x in ROOT.glob("*.py")) == sorted(SCRIPTS)


def test_files_are_short():
    for path in (x for name in (".", *FOLDERS) for x in (ROOT / name).glob("*.py")):
        assert len(path.read_text().splitlines()) < 500, path
