"""Who is sampled depends on the seed alone."""

import random
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from examples.inprocess import InProcessGrid
from examples.paper.around import SameNodes


def ten_nodes() -> InProcessGrid:
    return InProcessGrid(ClientApp(), 10)


def sampled(strategy: Any, disturb: bool) -> list[list[int]]:
    rounds, grid = [], ten_nodes()
    for server_round in (1, 2, 3):
        if disturb:
            random.random()  # as a heartbeat does
        messages = strategy.configure_train(
            server_round, ArrayRecord(), ConfigRecord(), grid
        )
        rounds.append([message.metadata.dst_node_id for message in messages])
    return rounds


def fedavg() -> FedAvg:
    return FedAvg(fraction_train=0.3, min_train_nodes=3, min_available_nodes=10)


def test_others_may_draw() -> None:
    random.seed(7)
    alone = sampled(fedavg(), disturb=False)
    random.seed(7)
    assert sampled(fedavg(), disturb=True) != alone  # what is to be mended

    assert sampled(SameNodes(fedavg(), 7), disturb=True) == alone
    assert sampled(SameNodes(fedavg(), 8), disturb=True) != alone


def test_others_are_not_disturbed() -> None:
    random.seed(1)
    expected = [random.random() for _ in range(3)]
    random.seed(1)
    strategy, grid, drawn = SameNodes(fedavg(), 7), ten_nodes(), []

    for server_round in (1, 2, 3):
        drawn.append(random.random())
        strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid)

    assert drawn == expected
