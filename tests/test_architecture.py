"""The house plan: who may import whom, and how large a thing may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import flwr_autoflip

PACKAGE = "flwr_autoflip"
ROOT = Path(flwr_autoflip.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]

ALLOWED: dict[str, set[str]] = {
    "core": {"core"},
    "policies": {"core", "policies"},
    "wire": {"core", "wire"},
    "ledger": {"core"},
    "live": {"ledger", "wire", "costs", "core"},
    "report": {"report", "ledger", "core"},
    "cli": {"cli", "report", "ledger", "files", "core"},
    "__main__": {"cli"},
    "costs": {"core"},
    "exchange": {"wire", "ledger", "costs", "core"},
    "budgets": {"exchange", "wire", "core"},
    "files": {"core"},
    "private": {"wire", "core"},
    "client": {"wire", "private", "core"},
    "mod": {"wire", "client", "private", "core"},
    "presets": {"policies", "core"},
    "policy_names": {"presets", "policies", "core"},
    "hosts": {"wire", "core"},
    "own_start": {"hosts", "core"},
    "inprocess": {"wire"},
    "checkpoint": {"core"},
    "claim": {"core"},
    "noise": set(),
    "snapshot": {"noise", "policies", "core"},
    "beginning": {"noise", "snapshot", "core"},
    "store": {"core"},
    "keeper": {
        *("checkpoint", "snapshot", "explorer", "planner", "ledger", "noise"),
        "core",
    },
    "resume": {"keeper", "hosts", "noise"},
    "rounds": {"ledger", "core"},
    "explorer": {
        *("budgets", "exchange", "hosts", "presets", "store", "wire", "policies"),
        "core",
    },
    "planner": {"policies", "store", "core"},
    "aggregation": {"exchange", "hosts", "wire", "core"},
    "strategy": {
        *("budgets", "costs", "explorer", "exchange", "hosts", "planner", "presets"),
        *("aggregation", "wire", "ledger", "live", "policies", "core"),
        *("checkpoint", "keeper", "policy_names", "snapshot", "resume", "store"),
        *("beginning", "claim", "own_start", "rounds"),
    },
    "older": {"strategy", "wire", "core"},
    "": {"core", "client", "files", "mod", "older", "presets", "strategy"},
}
"""First part of a module's name -> what it may import of this package."""

MAX_FUNCTION = 60
MAX_FILE = 400


def module_name(path: Path) -> str:
    """Give the dotted name inside the package: ``core.plan``, "" for the top."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> Iterator[str]:
    """List everything a file imports, anywhere in it, by absolute dotted name."""
    package = [PACKAGE, *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{start}.{alias.name}"


def internal(path: Path) -> set[str]:
    """List the package's own modules that a file imports, without the package."""
    modules = {module_name(other) for other in FILES} - {""}
    found = set()
    for name in imports(path):
        if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
            continue
        inside = name.removeprefix(PACKAGE).removeprefix(".")
        while inside and inside not in modules:  # a function or class of a module
            inside = inside.rpartition(".")[0]
        found.add(inside)
    return found


def test_the_reader_sees_imports_of_every_form() -> None:
    plan, client = ROOT / "core" / "plan.py", ROOT / "client.py"

    found = set(imports(plan))

    assert f"{PACKAGE}.core.layout.Arrays" in found  # from .layout import Arrays
    assert "warnings" in found  # import warnings
    assert internal(plan) == {"core.errors", "core.gather", "core.layout"}
    assert {"wire", "core.errors"} <= internal(client)  # from . import wire


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_down_only(path: Path) -> None:
    room = module_name(path).partition(".")[0]

    assert room in ALLOWED, f"{path} has no place in the house plan"
    for name in internal(path):
        assert name.partition(".")[0] in ALLOWED[room], f"{path} imports {name}"


def test_no_module_imports_itself_around_a_corner() -> None:
    graph = {
        module_name(path): internal(path) - {module_name(path)}
        for path in FILES
        if path.name != "__init__.py"
    }

    order = list(TopologicalSorter(graph).static_order())  # raises CycleError

    assert order.index("core.errors") < order.index("core.plan")
    assert order.index("core.plan") < order.index("strategy")


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_core_and_policies_know_no_flower(path: Path) -> None:
    room = module_name(path).partition(".")[0]
    flower = [name for name in imports(path) if name.partition(".")[0] == "flwr"]

    assert not flower or room not in ("core", "policies"), flower


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_nothing_imports_torchvision(path: Path) -> None:
    assert not [n for n in imports(path) if n.partition(".")[0] == "torchvision"]


def test_package_works_without_torchvision() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import flwr_autoflip, flwr_autoflip.core.trace, flwr_autoflip.policies\n"
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
