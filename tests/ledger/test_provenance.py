"""What a run is made with: true, and without names of hosts, users or places."""

import getpass
import json
import platform
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

import flwr_autoflip
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


def test_what_is_said_is_so() -> None:
    found = provenance()

    assert found["version"] == flwr_autoflip.__version__
    assert (found["torch"], found["numpy"]) == (torch.__version__, np.__version__)
    assert found["python"] == platform.python_version()
    assert found["cores"] >= 1
    age = datetime.now(UTC) - datetime.fromisoformat(found["date"])
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert json.loads(json.dumps(found)) == found


def test_nobody_is_named() -> None:
    text = json.dumps(provenance("examples")).lower()

    hidden = {socket.gethostname(), str(Path.home()), str(Path.cwd())}
    if getpass.getuser() != "root":
        hidden.add(getpass.getuser())
    assert not [name for name in hidden if name.lower() in text]


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
