"""The app that exists: what its README shows is what is applied, and it runs."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from examples.existing_app.run import HERE, KINDS, assemble, last_numbers
from examples.inprocess import InProcessGrid

pytest.importorskip("mlxtend")

CONFIG = {
    "num-server-rounds": 2,
    "fraction-train": 0.3,
    "local-epochs": 1,
    "learning-rate": 0.05,
}


@contextlib.contextmanager
def imported(folder: Path) -> Iterator[tuple[Any, Any]]:
    """Import an app's server and client, and forget them again."""
    sys.path.insert(0, str(folder))
    try:
        client = importlib.import_module("digits.client_app").app
        yield importlib.import_module("digits.server_app").app, client
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.partition(".")[0] == "digits"]:
            del sys.modules[name]


def run(folder: Path) -> None:
    """Run an app in this process."""
    context = Context(1, 1, {}, RecordDict(), CONFIG)
    with imported(folder) as (server, client):
        server(InProcessGrid(client, 10, CONFIG), context)


@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_shows_the_diff_that_is_applied(kind: str, tmp_path: Path) -> None:
    diff = (HERE / f"{kind}.diff").read_text()

    before = assemble(kind, tmp_path / "before", pruned=False)
    after = assemble(kind, tmp_path / "after", pruned=True)

    assert f"```diff\n{diff}```" in (HERE / "README.md").read_text()
    client = "digits/client_app.py"
    changed = set((after / client).read_text().splitlines()) ^ set(
        (before / client).read_text().splitlines()
    )
    assert len(changed) == 3  # an import, and one word in one line
    assert sum("autoflip_mod" in line for line in changed) == 2
    added = [x for x in diff.splitlines() if x.startswith("+") and x[:3] != "+++"]
    assert len(added) == 6  # imports, the mod, the server, the dependency
    # No file that the app had is untouched by accident or changed in secret.
    for path in before.rglob("*.*"):
        name = str(path.relative_to(before))
        same = path.read_text() == (after / name).read_text()
        assert same == (f"--- a/{name}\n" not in diff), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "pruned"), [("message", False), ("message", True), ("numpy", True)]
)
def test_it_learns_in_process(
    kind: str, pruned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The NumPyClient app's legacy server starts under `flwr run` only.
    folder = assemble(kind, tmp_path / "app", pruned=pruned)

    with caplog.at_level("INFO", "flwr"):
        run(folder)

    accuracy, megabytes = last_numbers(caplog.text.splitlines())
    assert accuracy > 0.5
    assert (megabytes == megabytes) == pruned
    if pruned:
        # Training goes both ways, evaluating down; the dense model has 0.32 MB.
        assert megabytes < 0.32 * 2 * (6 + 10) / 8
        assert "refused" not in caplog.text
        assert "failed" not in caplog.text


@pytest.mark.slow
def test_flwr_run_before_and_after(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from examples.simulation import flwr_run, superlink

    found = {}
    with superlink(tmp_path) as environment:
        for pruned in (False, True):
            app = assemble("numpy", tmp_path / f"app-{pruned}", pruned=pruned)
            log = tmp_path / f"{pruned}.log"
            lines = flwr_run(app, {"num-server-rounds": 2}, 4, environment, log)
            found[pruned] = last_numbers(lines)

    assert found[False][0] > 0.6
    assert found[True][0] > 0.6
    assert found[True][1] > 0
