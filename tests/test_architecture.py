"""How large a thing may grow; who may import whom is in pyproject.toml."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flwr_autoflip

ROOT = Path(flwr_autoflip.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]

MAX_FUNCTION = 60
MAX_FILE = 400


def test_package_works_without_torchvision() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import flwr_autoflip, flwr_autoflip.methods\n"
        "try:\n"
        "    import torchvision\n"
        "except ImportError:\n"
        "    print(flwr_autoflip.AutoFlip.__name__)\n"
    )

    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=120,
        check=False,
    )

    assert run.stdout.strip() == "AutoFlip", run.stderr


def code_lines(node: ast.AST, text: str) -> int:
    """Count lines of a function that hold code: no docstring, comment or blank."""
    lines = text.splitlines()
    first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
    hidden: set[int] = set()
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(
            inner
        ):
            doc = inner.body[0]
            hidden |= set(range(doc.lineno, (doc.end_lineno or 0) + 1))
    return sum(
        1
        for number in range(first, last + 1)
        if number not in hidden
        and lines[number - 1].strip()
        and not lines[number - 1].strip().startswith("#")
    )


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_functions_are_short(path: Path) -> None:
    text = path.read_text()

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            count = code_lines(node, text)
            assert count <= MAX_FUNCTION, f"{node.name} has {count} code lines"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_are_short(path: Path) -> None:
    count = len(path.read_text().splitlines())

    assert count < MAX_FILE, f"{path.name} has {count} lines"


def test_graph_and_methods_work_without_flower() -> None:
    code = (
        "import sys; sys.modules['flwr'] = None\n"
        "import torch\n"
        "from flwr_autoflip import Layout, Plan, expand, methods, shrink, trace\n"
        "model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))\n"
        "layout = trace(model, torch.zeros(1, 3))\n"
        "plan = Plan(layout, {'0': torch.tensor([0, 2]).numpy()})\n"
        "print(shrink(model, plan)[0].out_features, methods.__name__)\n"
    )

    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=120,
        check=False,
    )

    assert run.stdout.strip() == "2 flwr_autoflip.methods", run.stderr
