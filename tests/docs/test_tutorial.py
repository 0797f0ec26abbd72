"""The tutorial, done: its lines changed in an app of Flower's shape, its blocks run.

The app in ``flower_app/`` stands in for what ``flwr new`` downloads: the same names,
the same lines where the tutorial changes one, images made up.
"""

import importlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from typer.testing import CliRunner

from examples.inprocess import InProcessGrid
from flwr_autoflip.cli.main import app as command_line

sys.path.insert(0, str(Path(__file__).parent))
from pages import DOCS, blocks, run_python

PAGE = DOCS / "tutorial.md"
APP = Path(__file__).parent / "flower_app"
CONFIG = {
    "num-server-rounds": 2,
    "fraction-evaluate": 0.5,
    "local-epochs": 1,
    "learning-rate": 0.05,
    "batch-size": 16,
}
NODES = 3
FILES = ("pyproject.toml", "client_app.py", "server_app.py", "task.py")


def diffs() -> dict[str, list[str]]:
    """Diff blocks by the file that the text before them names, in the page's order."""
    found: dict[str, list[str]] = {}
    name = ""
    for part in re.split(r"^```", PAGE.read_text(), flags=re.MULTILINE):
        if part.startswith("diff\n"):
            found.setdefault(name, []).append(part.removeprefix("diff\n"))
        elif named := [
            n for n in re.findall(r"`(?:\w+/)?(\w+\.\w+)`", part) if n in FILES
        ]:
            name = named[-1]
    return found


def apply(text: str, diff: str) -> str:
    """Apply a diff whose lines stand once, together, in a text."""
    lines = diff.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    assert text.count(before) == 1, f"not once in the app:\n{before}"
    return text.replace(before, after)


def made(folder: Path, out: Path, *, small: bool = False) -> Path:
    """Make the app as the tutorial's reader has it after step 2, or after step 5."""
    app = folder / "app"
    shutil.copytree(APP, app, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in diffs().items():
        path = next(app.rglob(name))
        for diff in changes:
            if "save_pruned" in diff and not small:
                continue
            path.write_text(apply(path.read_text(), diff))
    server = app / "pytorchexample" / "server_app.py"
    text = server.read_text().replace("/tmp/pruned", str(out))
    if small:
        whole = "from flwr_autoflip import AutoFlip, save_pruned"
        assert f"`{whole}`" in PAGE.read_text()
        text = text.replace("from flwr_autoflip import AutoFlip\n", f"{whole}\n")
    server.write_text(text)
    return app


def run(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an app in this process; the current folder gets ``final_model.pt``."""
    forget()
    monkeypatch.syspath_prepend(str(app))
    parts = [f"pytorchexample.{side}_app" for side in ("client", "server")]
    client, server = (importlib.import_module(part).app for part in parts)
    grid = InProcessGrid(client, NODES, CONFIG)
    server(grid, Context(1, 1, {}, RecordDict(), CONFIG))


def forget() -> None:
    """Forget an app that was imported before, from another folder."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "pytorchexample"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    forget()


def test_six_lines_change() -> None:
    changes = diffs()
    until_run = [d for many in changes.values() for d in many if "save_pruned" not in d]

    assert set(changes) == set(FILES)
    assert sum(diff.count("\n+") + diff.startswith("+") for diff in until_run) == 6
    assert "six lines" in PAGE.read_text()


def test_the_app_runs_as_it_is_and_with_six_lines_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(APP, monkeypatch)
    assert Path("final_model.pt").exists()

    out = tmp_path / "pruned"
    with caplog.at_level("INFO", "flwr"):
        run(made(tmp_path, out), monkeypatch)

    assert (out / "ledger.jsonl").exists()
    assert "AutoFlip: round 2/2" in caplog.text
    assert "refused" not in caplog.text
    assert "stays dense" not in caplog.text


def test_the_rest_of_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pruned"
    app = made(tmp_path, out, small=True)
    found = [
        b._replace(text=b.text.replace("/tmp/pruned", str(out))) for b in blocks(PAGE)
    ]
    code = [b for b in found if b.language == "python"]
    whole = next(b for b in code if b.text.startswith("# pytorchexample/client_app.py"))
    code.remove(whole)

    run(app, monkeypatch)  # the mod

    # The commands, but for those that install, download or start Flower's engine.
    commands = [
        line.split()
        for block in found
        if block.language == "bash"
        for line in block.text.splitlines()
    ]
    ours = [words for program, *words in commands if program == "flwr-autoflip"]
    assert [words[0] for words in ours] == ["report", "inspect"]
    assert {words[0] for words in commands} == {"flwr-autoflip", "pip", "flwr", "cd"}
    for words in ours:
        done = CliRunner().invoke(command_line, words)
        assert done.exit_code == 0, done.output
    assert Path("report.html").exists()
    assert run_python(code, {}, PAGE.name) >= 4

    # Step 6: the class that is handed a small model, at the same server.
    (app / "pytorchexample" / "client_app.py").write_text(whole.text)
    run(app, monkeypatch)
    assert run_python(code, {}, PAGE.name) >= 4


@pytest.mark.slow
def test_flwr_run_with_six_lines_changed(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from examples.simulation import flwr_run, superlink

    out = tmp_path / "pruned"
    with superlink(tmp_path) as environment:
        app = made(tmp_path, out)
        log = tmp_path / "run.log"
        said = "\n".join(flwr_run(app, {"num-server-rounds": 2}, 2, environment, log))

    assert "AutoFlip: round 2/2" in said
    assert (out / "ledger.jsonl").exists()
