"""The guide, followed: its method and its layer type, added to a copy of the house."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pages import ROOT, blocks

PAGE = ROOT / "CONTRIBUTING.md"
METHOD, METHOD_TEST, RULE, RESIZE, CASE = range(5)


def copy_of_the_house(folder: Path) -> Path:
    """Copy package and tests, as a contributor has them."""
    for name in ("flwr_autoflip", "tests"):
        skip = shutil.ignore_patterns("__pycache__", "docs", "examples")
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def pytest_in(folder: Path, *arguments: str) -> str:
    """Run tests of a copy; give what pytest says."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=None,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_method_and_a_layer_type_are_added_as_the_guide_says(tmp_path: Path) -> None:
    code = [b.text for b in blocks(PAGE) if b.language == "python"]
    house = copy_of_the_house(tmp_path / "house")
    core = house / "flwr_autoflip" / "core"
    methods, tests = house / "flwr_autoflip" / "methods", house / "tests"

    (methods / "largest.py").write_text(code[METHOD])
    (tests / "methods" / "test_largest.py").write_text(code[METHOD_TEST])
    for path, text in ((core / "layers.py", RULE), (core / "shrink.py", RESIZE)):
        path.write_text(f"{path.read_text()}\n\n{code[text]}")
    cases = tests / "core" / "test_layers.py"
    before, mark, after = cases.read_text().partition("\n\ndef built(")
    cases.write_text(f"{before}\n\n{code[CASE]}{mark}{after}")

    said = pytest_in(
        house, "tests/methods/test_largest.py", "tests/core/test_layers.py", "-k",
        "largest or embedding",
    )  # fmt: skip
    assert "6 passed" in said
    pytest_in(house, "tests/test_architecture.py")
