"""A run's folders: one run at a time, for their owner alone, no way out of them."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from federation import EXAMPLE, Client, TinyNet, guided, initial
from flwr.serverapp.strategy import FedAvg, Result
from grid import LocalGrid

from flwr_autoflip import AutoFlip, AutoFlipError, AutoFlipWarning, client_app
from flwr_autoflip.ledger.ledger import read_ledger

TESTS = Path(__file__).parents[1]
RUN = """
import sys, time
from pathlib import Path
import torch
from test_claim import run

torch.set_num_threads(1)
there = Path(sys.argv[3])

def waits(server_round, arrays):
    if server_round == 1 and there.exists():
        (there / "begun").touch()
        while there.exists():
            time.sleep(0.05)

run({sys.argv[1]: sys.argv[2]}, evaluate_fn=waits)
"""


def run(folders: dict[str, Any], rounds: int = 2, **more: Any) -> Result:
    strategy = AutoFlip(FedAvg(), TinyNet(), EXAMPLE, **guided(**folders))
    grid = LocalGrid(client_app(Client), 3)
    return strategy.start(grid, initial(), num_rounds=rounds, **more)


def process(kind: str, folder: Path, there: Path) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return subprocess.Popen(
        [sys.executable, "-c", RUN, kind, str(folder), str(there)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def another_run(kind: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of a run, until the block ends."""
    there = folder.parent / "there"
    there.mkdir()
    child = process(kind, folder, there)
    try:
        end = time.monotonic() + 120
        while not (there / "begun").exists():
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.05)
        yield child
    finally:
        (there / "begun").unlink(missing_ok=True)
        there.rmdir()
        child.communicate(timeout=120)


# --- One run at a time ---


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("checkpoint_dir", "checkpoint_dir"),
        ("ledger_dir", "ledger_dir"),
        ("checkpoint_dir", "ledger_dir"),  # its ledger lies there, too
    ],
)
def test_a_second_run_ends_with_one_line_and_the_first_does_not_notice(
    tmp_path: Path, theirs: str, ours: str
) -> None:
    folder = tmp_path / "run"
    with another_run(theirs, folder) as child:
        files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

        with pytest.raises(AutoFlipError, match="is in use by another run") as error:
            run({ours: folder})

        said = str(error.value)
        assert f"{folder} is in use by another run (process {child.pid}): " in said
        assert "a folder of its own" in said
        assert "\n" not in said
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files

    assert child.returncode == 0
    trained = [r for r in read_ledger(folder / "ledger.jsonl") if r["phase"] == "train"]
    assert [row["status"] for row in trained] == ["ok"] * 6
    run({ours: folder})  # it is free again


def test_the_second_process_says_it_as_well(tmp_path: Path) -> None:
    with another_run("checkpoint_dir", tmp_path / "run") as child:
        second = process("checkpoint_dir", tmp_path / "run", tmp_path / "nowhere")
        said = second.communicate(timeout=120)[1]

        assert second.returncode != 0
        assert f"in use by another run (process {child.pid})" in said.splitlines()[-1]


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with another_run("checkpoint_dir", folder) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()

        result = run({"checkpoint_dir": folder})

    assert set(result.train_metrics_clientapp) == {1, 2}


def test_a_claim_ends_with_a_run_that_fails(tmp_path: Path) -> None:
    def fails(server_round: int, arrays: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run({"checkpoint_dir": tmp_path}, evaluate_fn=fails)

    run({"checkpoint_dir": tmp_path})


def test_two_folders_that_are_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run").mkdir()

    run({"checkpoint_dir": tmp_path / "run", "ledger_dir": tmp_path / "link"})

    assert (tmp_path / "run" / "ledger.jsonl").exists()


def test_where_nothing_can_be_locked_a_run_says_so_and_goes_on(tmp_path: Path) -> None:
    error = OSError(38, "Function not implemented")

    with (
        patch("fcntl.flock", side_effect=error),
        pytest.warns(AutoFlipWarning, match=r"cannot be locked .*only one run uses it"),
    ):
        run({"ledger_dir": tmp_path})

    assert read_ledger(tmp_path / "ledger.jsonl")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(AutoFlipError, match=r"file/run cannot be used by a run: .*own"):
        run({"checkpoint_dir": tmp_path / "file" / "run"})


# --- For their owner alone ---


def modes(folder: Path) -> dict[str, str]:
    found = {folder.name: folder, **{p.name: p for p in folder.rglob("*")}}
    return {name: oct(stat.S_IMODE(p.stat().st_mode)) for name, p in found.items()}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o377])
def test_folders_and_files_are_private_whatever_the_umask(
    tmp_path: Path, mask: int
) -> None:
    with umask(mask):
        run({"checkpoint_dir": tmp_path / "all" / "run"})

    found = modes(tmp_path / "all")
    assert {found.pop(name) for name in ("all", "run", "guidance")} == {"0o700"}
    assert set(found.values()) == {"0o600"}
    assert {"ledger.jsonl", "autoflip.lock", "node-100.guidance"} < set(found)
    assert any(name.startswith("checkpoint-") for name in found)


def test_a_file_is_private_while_it_is_written(tmp_path: Path) -> None:
    seen: dict[str, int] = {}
    replace = Path.replace

    def look(path: Path, target: Path) -> Path:
        seen[path.name] = stat.S_IMODE(path.stat().st_mode)
        return replace(path, target)

    with umask(0), patch.object(Path, "replace", look):
        run({"checkpoint_dir": tmp_path / "run"})

    assert set(seen.values()) == {0o600}
    assert {name.rpartition(".")[2] for name in seen} == {"partial"}


def test_an_open_folder_is_used_and_its_old_files_become_private(
    tmp_path: Path,
) -> None:
    run({"checkpoint_dir": tmp_path}, rounds=1)
    (tmp_path / "of another app").touch()
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)

    run({"checkpoint_dir": tmp_path}, rounds=1)  # all was done before

    found = modes(tmp_path)
    assert found.pop("of another app") == "0o666"
    assert found.pop("guidance") == found.pop(tmp_path.name) == "0o777"
    assert set(found.values()) == {"0o600"}


# --- Links and leftovers ---


def test_links_where_a_run_writes_are_replaced_and_not_followed(tmp_path: Path) -> None:
    folder, victim = tmp_path / "run", tmp_path / "victim"
    (folder / "guidance").mkdir(parents=True)
    victim.write_text("precious")
    names = ["ledger.jsonl", "checkpoint-000000.safetensors"]
    names += [f"checkpoint-{i:06}.safetensors" for i in range(1, 6)]
    names += [f"guidance/node-{node}.guidance" for node in (100, 101, 102)]
    for name in names:
        (folder / f"{name}.partial").symlink_to(victim)
    (folder / "ledger.jsonl").symlink_to(victim)
    (folder / "guidance" / "node-101.guidance").symlink_to(victim)

    run({"checkpoint_dir": folder})

    assert victim.read_text() == "precious"
    assert stat.S_IMODE(victim.stat().st_mode) != 0o600
    assert not (folder / "ledger.jsonl").is_symlink()
    assert not (folder / "guidance" / "node-101.guidance").is_symlink()
    assert read_ledger(folder / "ledger.jsonl")


def test_a_link_that_comes_in_mid_run_is_not_written_through(tmp_path: Path) -> None:
    folder, victim = tmp_path / "run", tmp_path / "victim"
    victim.write_text("precious")

    def plant(server_round: int, arrays: Any) -> None:
        if server_round == 1:
            (folder / "ledger.jsonl").unlink()
            (folder / "ledger.jsonl").symlink_to(victim)

    with pytest.raises(OSError, match="ledger"):
        run({"ledger_dir": folder}, evaluate_fn=plant)

    assert victim.read_text() == "precious"


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder, victim = tmp_path / "run", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    (folder / "autoflip.lock").symlink_to(victim)

    with pytest.raises(AutoFlipError, match="cannot be used by a run"):
        run({"ledger_dir": folder})

    assert victim.read_text() == "precious"


def test_what_a_killed_run_left_half_written_is_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "guidance").mkdir(parents=True)
    half = [
        "checkpoint-000007.safetensors.partial",  # as older versions named them
        "checkpoint-000007.safetensors.0123456789abcdef.partial",
        f"{'ab' * 16}.safetensors.0123456789abcdef.partial",
        "ledger.jsonl.0123456789abcdef.partial",
        "guidance/node-7.guidance.0123456789abcdef.partial",
    ]
    others = ["download.partial", "model.safetensors.partial", "node-7.guidance"]
    for name in half + others:
        (folder / name).write_text("half")
    (folder / "x").write_text("theirs")
    (folder / f"{half[1]}.partial").symlink_to(folder / "x")

    run({"checkpoint_dir": folder})

    assert not any((folder / name).exists() for name in half)
    assert all((folder / name).read_text() == "half" for name in others)
    assert (folder / "x").read_text() == "theirs"
