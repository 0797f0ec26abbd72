"""The guide, followed: its method and its layer type, added to a copy of the house."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pages import ROOT, blocks

PAGE = ROOT / "CONTRIBUTING.md"


@pytest.mark.slow
def test_a_method_and_a_layer_type_are_added_as_the_guide_says(tmp_path: Path) -> None:
    method, method_test, rule, resize, layer_test = [
        block.text for block in blocks(PAGE) if block.language == "python"
    ]
    skip = shutil.ignore_patterns("__pycache__", "docs", "examples")
    for name in ("flwr_autoflip", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, text in {
        "flwr_autoflip/methods/largest.py": method,
        "tests/methods/test_largest.py": method_test,
        "flwr_autoflip/graph/tracing/modules.py": rule,
        "flwr_autoflip/graph/shrink.py": resize,
        "tests/graph/test_layers.py": layer_test,
    }.items():
        with (tmp_path / name).open("a") as file:
            file.write(f"\n\n{text}")

    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    names = ["tests/methods/test_largest.py", "tests/graph/test_layers.py"]
    done = subprocess.run(
        [*command, *names, "-k", "largest or embedding"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
