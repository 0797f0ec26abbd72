"""Ledgers as scalars, read back by TensorBoard itself."""

import sys
from pathlib import Path

import pytest
from ledgers import make_ledger
from typer.testing import CliRunner, Result

from flwr_autoflip.cli import tensorboard
from flwr_autoflip.cli.main import app
from flwr_autoflip.cli.tensorboard import scalars, write_scalars


def test_scalars_by_hand() -> None:
    found = scalars(make_ledger(None, 2, 3).rows)

    assert found["cost/bytes-moved", 0] == 4200
    assert found["cost/bytes-moved", 2] == 4200 + 6 * 525
    assert found["server/top1", 1] == pytest.approx(0.9 - 0.8 * 0.9)
    assert found["plan/parameters-kept", 0] == 0.25
    assert found["units/fc1", 2] == 32


def call(run: Path, logdir: Path) -> Result:
    return CliRunner().invoke(app, ["tensorboard", str(run), str(logdir)])


def read_back(logdir: Path) -> dict[tuple[str, int], float]:
    loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    events = loader.EventAccumulator(str(logdir))
    events.Reload()
    return {
        (tag, event.step): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    ledger = make_ledger(tmp_path / "run", 3, 2)

    done = call(tmp_path / "run", tmp_path / "logs")

    assert done.exit_code == 0, done.output
    assert read_back(tmp_path / "logs") == pytest.approx(scalars(ledger.rows), rel=1e-6)


def test_a_growing_ledger_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    make_ledger(tmp_path / "run", 1, 2)
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt
        make_ledger(tmp_path / "run", 1 + len(looks), 2)

    monkeypatch.setattr(tensorboard.time, "sleep", sleep)

    write_scalars(tmp_path / "run", tmp_path / "logs", follow=True)

    found = read_back(tmp_path / "logs")
    assert {step for tag, step in found if tag == "server/top1"} == {0, 1, 2, 3}


def test_errors_say_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    for name in ("a", "b"):
        make_ledger(tmp_path / name, 1, 1)

    assert "holds 2 runs; name one of them" in call(tmp_path, tmp_path / "x").stderr

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    done = call(tmp_path / "a", tmp_path / "x")
    assert done.exit_code == 1
    assert 'pip install "flwr-autoflip[tensorboard]"' in done.stderr
