"""A hundred nodes, a tenth lost a round: every accepted update is in the average."""

import numpy as np
import pytest

from examples.benchmarks import churn
from examples.inprocess import InProcessGrid


def test_a_tenth_drops_out_and_not_always_the_same() -> None:
    lost = [{p for p in range(100) if churn.drops_out(p, 100, r)} for r in range(9)]

    assert {len(nodes) for nodes in lost} == {10}
    assert len(set.union(*lost)) > 50


def test_the_witness_notices_a_reply_that_is_not_in_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = churn.serve(InProcessGrid(churn.app, 10), 10, 3)
    average = churn.FedAvg.aggregate_train
    monkeypatch.setattr(
        churn.FedAvg,
        "aggregate_train",
        lambda self, server_round, replies: average(
            self, server_round, list(replies)[1:]
        ),
    )

    short = churn.serve(InProcessGrid(churn.app, 10), 10, 3)

    assert whole["largest_difference"] < 1e-6 < 1e-4 < short["largest_difference"]


@pytest.mark.slow
def test_twenty_rounds_lose_nothing_and_hold_memory() -> None:
    found = churn.in_process(nodes=100, rounds=20)

    assert found["rounds"] == 20
    assert found["requests"] == 2000
    assert found["failed"] == 200
    assert found["accepted"] == found["summed_by_the_witness"] == 1800
    assert found["largest_difference"] < 1e-6
    memory = found["resident_mb"]
    assert len(memory) == 21
    assert np.ptp(memory[5:]) < 0.05 * memory[5]
