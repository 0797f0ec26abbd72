"""A run's folders: one run at a time, for their owner alone, no way out of them."""

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
from filelock import FileLock

from flwr_autoflip import AutoFlipError, AutoFlipWarning
from flwr_autoflip.server.persistence.checkpoint import claimed

ROOT = Path(__file__).parents[2]
CLAIM = """
import sys
from pathlib import Path
from flwr_autoflip.server.persistence.checkpoint import claimed

with claimed([Path(sys.argv[1])]):
    print("here", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_run(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder until the block ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "here\n"
        yield child
    finally:
        child.communicate(timeout=60)


@pytest.mark.slow
def test_a_second_run_ends_with_one_line_and_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with another_run(folder):
        (folder / "ledger.jsonl").write_text("theirs")

        for _ in range(2):
            with pytest.raises(AutoFlipError) as error, claimed([folder]):
                pass

        text = f"{folder} is in use by another run: "
        assert str(error.value).startswith(text)
        assert "a folder of its own" in str(error.value)
        assert "\n" not in str(error.value)
        assert (folder / "ledger.jsonl").read_text() == "theirs"
    with claimed([folder]):
        pass  # it is free again


def test_a_second_run_in_the_same_process_is_refused_too(tmp_path: Path) -> None:
    inner = claimed([tmp_path / "other", tmp_path])
    with (
        claimed([tmp_path]),
        pytest.raises(AutoFlipError, match="in use by another run"),
        inner,
    ):
        pass

    with claimed([tmp_path / "other"]):
        pass  # what it had claimed before it failed is free again


@pytest.mark.slow
def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    with another_run(tmp_path) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()

        with claimed([tmp_path]):
            pass


def test_two_folders_that_are_one(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")

    with claimed([tmp_path / "run", tmp_path / "link"]):
        assert (tmp_path / "run" / "autoflip.lock").exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no")]
)
def test_where_nothing_can_be_locked_a_run_says_so_and_goes_on(
    tmp_path: Path, error: Exception
) -> None:
    ran = []
    with (
        patch.object(FileLock, "acquire", side_effect=error),
        pytest.warns(AutoFlipWarning, match=r"cannot be locked .*only one run uses it"),
        claimed([tmp_path]),
    ):
        ran.append(1)

    assert ran


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o377])
def test_folders_are_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with claimed([tmp_path / "all" / "run"]):
            found = {p.name: p.stat().st_mode for p in tmp_path.rglob("*")}
    finally:
        os.umask(before)

    modes = {name: stat.S_IMODE(mode) for name, mode in found.items()}
    assert modes == {"all": 0o700, "run": 0o700, "autoflip.lock": 0o600}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "run"

    with (
        pytest.raises(AutoFlipError, match=r"file/run cannot be used by a run: .*own"),
        claimed([folder]),
    ):
        pass


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder, victim = tmp_path / "run", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    (folder / "autoflip.lock").symlink_to(victim)

    with (
        pytest.raises(AutoFlipError, match=r"cannot be used by a run: .*is a link"),
        claimed([folder]),
    ):
        pass

    assert victim.read_text() == "precious"


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    half = [
        "checkpoint-000007.safetensors.0123456789abcdef.partial",
        "ledger.jsonl.0123456789abcdef.partial",
        "reports/node-7.safetensors.0123456789abcdef.partial",
    ]
    others = ["download.partial", "model.safetensors.partial", "node-7.safetensors"]
    for name in half + others:
        (tmp_path / name).write_text("half")
    link = tmp_path / "ledger.jsonl.aaaaaaaaaaaaaaaa.partial"
    link.symlink_to(tmp_path / "download.partial")

    with claimed([tmp_path]):
        pass

    assert not any((tmp_path / name).exists() for name in half)
    assert all((tmp_path / name).read_text() == "half" for name in others)
    assert link.is_symlink()
