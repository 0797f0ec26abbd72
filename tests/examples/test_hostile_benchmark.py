"""Half of the nodes fail and the wire is full of rubbish: nothing gets lost."""

import pytest

from examples.benchmarks import hostile


def test_forty_rounds_lose_no_accepted_update() -> None:
    found = hostile.run(nodes=30, rounds=40)

    statuses, beside = found["statuses"], found["beside"]
    assert statuses["ok"] == found["honest"] > 500
    assert statuses["refused"] == beside["refused"] > 100
    assert statuses["failed"] == beside["error"] > 100
    assert statuses["missing"] == beside["missing"] > 100
    assert sum(statuses.values()) == 30 * 40
    assert min(beside["again"], beside["old"], beside["stranger"]) > 40
    assert found["largest_difference"] < 1e-5
    assert found["least_seconds_of_a_row"] >= 0
    memory = found["resident_mb"]
    assert memory[40] < 1.05 * memory[10]


def test_the_grid_notices_a_reply_that_is_not_in_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    average = hostile.FedAvg.aggregate_train
    monkeypatch.setattr(
        hostile.FedAvg,
        "aggregate_train",
        lambda self, server_round, replies: average(
            self, server_round, list(replies)[1:]
        ),
    )

    assert hostile.run(nodes=10, rounds=3)["largest_difference"] > 1e-4
