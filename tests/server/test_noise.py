"""No file foretells noise, and none that anybody saw is drawn again."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation import EXAMPLE, Client, TinyNet, exploring, initial, plain_app
from flwr.app import ArrayRecord, MetricRecord
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Result,
    Strategy,
)
from grid import LocalGrid

from flwr_autoflip import AutoFlip, autoflip_mod, client_app
from flwr_autoflip.ledger.ledger import read_ledger

NODES = 4
QUIET = {"fraction_evaluate": 0.0}


def fixed(noise: float = 0.1) -> Strategy:
    inner = FedAvg(**QUIET)  # type: ignore[arg-type]
    return DifferentialPrivacyServerSideFixedClipping(inner, noise, 1.0, NODES)


def adaptive() -> Strategy:
    inner = FedAvg(**QUIET)  # type: ignore[arg-type]
    return DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.1, NODES)


class Killed(BaseException):
    """Nothing that any code catches."""


def run(
    folder: Path,
    inner: Strategy,
    rounds: int,
    kill_in: int | None = None,
    seed: int = 0,
) -> tuple[Result, dict[int, np.ndarray]]:
    """Run from a seed; give the result, and the deployable values."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    seen: dict[int, np.ndarray] = {}

    def look(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen.setdefault(server_round, arrays["fc1.weight"].numpy().copy())
        if server_round == kill_in:
            raise Killed
        return MetricRecord({"loss": 1.0})

    options = exploring(0.5, checkpoint_dir=folder)
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)
    grid = LocalGrid(client_app(Client), NODES)
    result = strategy.start(grid, initial(), num_rounds=rounds, evaluate_fn=look)
    return result, seen


def states() -> dict[str, bytes]:
    """Give what of the process's generators a file could hold, as it would be there."""
    numbers = random.getstate()[1][:6]
    return {
        "python": ", ".join(map(str, numbers)).encode(),
        "numpy": np.random.get_state()[1].tobytes(),  # type: ignore[index,union-attr] # noqa: NPY002
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_no_generator_is_in_a_checkpoint(tmp_path: Path) -> None:
    run(tmp_path / "noisy", fixed(), 2)
    written = all_bytes(tmp_path / "noisy")
    assert [name for name, state in states().items() if state in written] == []

    run(tmp_path / "quiet", FedAvg(**QUIET), 2)  # type: ignore[arg-type]
    written = all_bytes(tmp_path / "quiet")
    assert [name for name, state in states().items() if state in written] == [*states()]


@pytest.mark.parametrize("inner", [fixed, adaptive])
def test_a_run_that_goes_on_draws_other_noise(tmp_path: Path, inner: Any) -> None:
    whole = run(tmp_path / "whole", inner(), 2)[1]
    with pytest.raises(Killed):
        run(tmp_path / "run", inner(), 2, kill_in=1)
    shutil.copytree(tmp_path / "run", tmp_path / "again")

    one = run(tmp_path / "run", inner(), 2)[1]
    other = run(tmp_path / "again", inner(), 2)[1]

    np.testing.assert_array_equal(one[1], whole[1])  # what was drawn was kept
    np.testing.assert_array_equal(other[1], whole[1])
    # Nodes train the same: what differs is noise alone, on every weight that stays.
    stays = one[2] != 0
    assert 0 < stays.mean() < 1
    for first, second in ((one, other), (one, whole), (other, whole)):
        assert (first[2] != second[2])[stays].all()


def test_what_was_aggregated_is_saved_before_anybody_sees_it(tmp_path: Path) -> None:
    """Also where no node evaluates: the app's evaluation may have been published."""
    with pytest.raises(Killed):
        run(tmp_path, fixed(), 2, kill_in=1)

    run(tmp_path, fixed(), 2, seed=5)

    rows = read_ledger(tmp_path / "ledger.jsonl")
    trained = [(r["round"], r["status"]) for r in rows if r["phase"] == "train"]
    assert trained == [(1, "ok")] * NODES + [(2, "ok")] * NODES


def test_nodes_in_this_process_that_draw_noise(tmp_path: Path) -> None:
    inner = FedAvg(**QUIET)  # type: ignore[arg-type]
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, checkpoint_dir=tmp_path)
    app = plain_app([autoflip_mod, LocalDpMod(1.0, 1.0, 1.0, 1e-5)])

    strategy.start(LocalGrid(app, NODES), initial(), num_rounds=2)

    written = all_bytes(tmp_path)
    assert [name for name, state in states().items() if state in written] == []
