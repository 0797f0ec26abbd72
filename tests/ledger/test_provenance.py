"""What a run is made with: true, recorded, and without names of hosts or users."""

import getpass
import json
import platform
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

import flwr
import numpy as np
import pytest
import torch
from federation import EXAMPLE, Client, TinyNet, initial
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid
from ledgers import make_ledger

import flwr_autoflip
from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.ledger.ledger import read_ledger
from flwr_autoflip.ledger.page.page import render_page
from flwr_autoflip.ledger.page.runs import Run
from flwr_autoflip.ledger.provenance import commit_of, describe, provenance


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    command = ("git", "-C", str(folder), *who, *words)
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    for name in ("package", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_what_is_said_is_so_and_nobody_is_named() -> None:
    found = provenance("examples")

    assert found["version"] == flwr_autoflip.__version__
    assert (found["torch"], found["numpy"]) == (torch.__version__, np.__version__)
    assert (found["flwr"], found["python"]) == (
        *(flwr.__version__, platform.python_version()),
    )
    assert found["cores"] >= 1
    age = datetime.now(UTC) - datetime.fromisoformat(found["date"])
    assert timedelta(0) <= age < timedelta(minutes=1)
    text = json.dumps(found)
    assert json.loads(text) == found
    hidden = {socket.gethostname(), str(Path.home()), str(Path.cwd())}
    if getpass.getuser() != "root":
        hidden.add(getpass.getuser())
    assert not [name for name in hidden if name.lower() in text.lower()]


def test_a_commit_says_whether_files_differ(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert commit_of(checkout, "package") == commit

    (checkout / "other" / "new.py").write_text("2\n")
    assert commit_of(checkout, "package") == commit
    assert commit_of(checkout, "package", "other") == f"{commit}+changes"

    (checkout / "package" / "a.py").write_text("2\n")
    assert commit_of(checkout, "package") == f"{commit}+changes"


def test_no_checkout_is_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # installed into an environment that lies in somebody else's checkout
    assert commit_of(checkout / "package", ".") is None

    monkeypatch.setenv("PATH", "")
    assert commit_of(checkout, "package") is None


def test_a_line_takes_what_a_foreign_file_holds() -> None:
    line = describe({"version": ["x" * 999], "cores": {}, "date": 7, "more": "y"})

    assert line == f"flwr-autoflip {str(['x' * 999])[:80]}, {{}} cores, 7"
    assert describe({}) == ""


# --- In ledgers and on pages ---


def run(rounds: int, **options: Any) -> None:
    strategy = AutoFlip(FedAvg(fraction_evaluate=0.0), TinyNet(), EXAMPLE, **options)
    strategy.start(LocalGrid(client_app(Client), 3), initial(), num_rounds=rounds)


def test_every_start_of_a_run_is_recorded_and_shown(tmp_path: Path) -> None:
    run(1, checkpoint_dir=tmp_path)
    run(3, checkpoint_dir=tmp_path)

    rows = read_ledger(tmp_path / "ledger.jsonl")

    starts = [row for row in rows if row["phase"] == "run"]
    assert [row["round"] for row in starts] == [0, 1]
    assert rows[0] == starts[0]
    assert set(provenance()) <= set(starts[0])
    page = render_page([Run("a", rows)])
    assert f"a: {escape(describe(starts[0]))}; went on with flwr-autoflip " in page


def test_a_foreign_row_is_escaped_and_an_old_ledger_says_nothing() -> None:
    rows = list(make_ledger(None, 2, 2).rows)
    odd = {"phase": "run", "round": 0, "version": "<script>", "commit": ["<i>"] * 99}

    assert "no word of what made it" in render_page([Run("old", rows)])
    page = render_page([Run("odd", [odd, *rows])])
    assert "<i>" not in page
    assert "flwr-autoflip &lt;script&gt;" in page
