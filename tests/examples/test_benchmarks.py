"""The benchmarks do what they say, on a small scale."""

import pytest
import torch
from torch import nn

from examples.benchmarks import churn, codec, server


def test_forty_rounds_of_churn_lose_no_accepted_update() -> None:
    found = churn.run(nodes=30, rounds=40)

    statuses, beside = found["statuses"], found["beside"]
    assert statuses["ok"] == found["honest"] > 500
    assert statuses["refused"] == beside["refused"] > 100
    assert statuses["failed"] == beside["error"] > 100
    assert statuses["missing"] == beside["missing"] > 100
    assert sum(statuses.values()) == 30 * 40
    assert min(beside["again"], beside["old"], beside["stranger"]) > 40
    assert found["largest_difference"] < 1e-5
    memory = found["resident_mb"]
    assert memory[40] < 1.05 * memory[10]


def test_the_grid_notices_a_reply_that_is_not_in_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    average = churn.FedAvg.aggregate_train
    monkeypatch.setattr(
        churn.FedAvg,
        "aggregate_train",
        lambda self, server_round, replies: average(
            self, server_round, list(replies)[1:]
        ),
    )

    assert churn.run(nodes=10, rounds=3)["largest_difference"] > 1e-4


# --- The server's time and memory, values ---


def tiny() -> nn.Module:
    """Two layers, 1,562 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(49, 30), nn.ReLU(), nn.Linear(30, 2))


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(server.MODELS, "tiny", (tiny, torch.zeros(1, 1, 7, 7)))


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("kind", ["FedAvg", *server.ROUNDS])
def test_all_replies_of_a_round_count(kind: str) -> None:
    run = server.prepare("tiny", kind, 3)

    assert run() > 0  # it asserts that each reply was accepted
    assert run() > 0


def test_ratios_are_to_the_first_round() -> None:
    rounds = {"one": lambda: 2.0, "other": lambda: 3.0}

    assert server.measure(rounds, 3) == {"one": 1.0, "other": 1.5}


@pytest.mark.usefixtures("_tiny")
def test_codec_gives_speeds() -> None:
    assert list(codec.measure("tiny", "1/2", 1)) == ["pack", "unpack", "expand"]
