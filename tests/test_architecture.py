"""How large a thing may grow, and what it works without.

Who may import whom is in pyproject.toml.
"""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import flwr_autoflip

ROOT = Path(flwr_autoflip.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_FUNCTION, MAX_FILE, MAX_FOLDER = 60, 400, 12

GRAPH = """
import torch
from flwr_autoflip import Layout, Plan, expand, methods, shrink, trace
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
layout = trace(model, torch.zeros(1, 3))
plan = Plan(layout, {"0": torch.tensor([0, 2]).numpy()})
print(shrink(model, plan)[0].out_features, methods.named("l1").macs)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "code", "said"),
    [
        (("flwr",), GRAPH, "2 0.25"),
        (
            ("torchvision", "ray", "matplotlib"),
            "import flwr_autoflip; print(flwr_autoflip.AutoFlip.__name__)",
            "AutoFlip",
        ),
    ],
)
def test_works_without(missing: tuple[str, ...], code: str, said: str) -> None:
    without = f"import sys; sys.modules |= dict.fromkeys({missing!r})\n{code}"

    run = subprocess.run(
        [sys.executable, "-c", without],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=120,
        check=False,
    )

    assert run.stdout.strip() == said, run.stderr


def code_lines(function: ast.FunctionDef, lines: list[str]) -> int:
    """Count lines of a function that hold code: no docstring, comment or blank."""
    first = function.lineno
    if ast.get_docstring(function) is not None:
        first = function.body[0].end_lineno or 0
    own = [line.strip() for line in lines[first : function.end_lineno]]
    return sum(1 for line in own if line and not line.startswith("#"))


def test_functions_files_and_folders_are_small() -> None:
    large = {}
    for path in FILES:
        text = path.read_text()
        lines, name = text.splitlines(), str(path.relative_to(ROOT))
        if len(lines) >= MAX_FILE:
            large[name] = len(lines)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                count = code_lines(node, lines)
                if count > MAX_FUNCTION:
                    large[f"{name}: {node.name}"] = count
    folders = Counter(path.parent for path in FILES if path.name != "__init__.py")
    large |= {str(f): n for f, n in folders.items() if n > MAX_FOLDER}

    assert large == {}
