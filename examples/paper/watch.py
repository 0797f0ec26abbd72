"""FedAvg as the comparison needs it: seeded, and watched."""

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedAvgM

from flwr_autoflip.wire import from_arrayrecord


class Watched(FedAvg):
    """Sample the same nodes for the same seed; measure how far updates are apart.

    Flower samples with Python's global generator, from which its heartbeats and its
    waiting for slow replies draw as well: how many rounds that takes changes who is
    sampled next.

    Parameters
    ----------
    seed : int
        As if ``random.seed(seed)`` came before the first round and nobody else drew.
    names : iterable of str
        Trainable tensors.
    **options
        Of the strategy.

    Attributes
    ----------
    variances : list of float
        Eq. 4 of arXiv:2405.10271v3, one a round.
    """

    def __init__(self, seed: int, names: Iterable[str], **options: Any) -> None:
        super().__init__(**options)
        self.names = tuple(names)
        self.variances: list[float] = []
        self.generator = random.Random(seed).getstate()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample from this run's own numbers."""
        others = random.getstate()
        random.setstate(self.generator)
        try:
            return list(super().configure_train(server_round, arrays, config, grid))
        finally:
            self.generator = random.getstate()
            random.setstate(others)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Measure, then average."""
        replies = list(replies)
        records = [next(iter(r.content.array_records.values())) for r in replies]
        self.variances.append(update_variance(records, self.names))
        return super().aggregate_train(server_round, replies)


class WatchedM(Watched, FedAvgM):
    """The same with momentum on the server."""


def update_variance(records: list[ArrayRecord], names: Iterable[str]) -> float:
    """Mean squared distance of the nodes' weights from their mean (Eq. 4).

    All nodes start from the same weights, so those of updates are the same.

    Parameters
    ----------
    records : list of ArrayRecord
        One a node, dense.
    names : iterable of str

    Returns
    -------
    float
    """
    nodes, spread = [from_arrayrecord(record) for record in records], 0.0
    for name in names:
        values = [node[name].ravel() for node in nodes]
        mean = sum(values) / len(values)
        spread += sum(float(np.vdot(v - mean, v - mean)) for v in values)
    return spread / max(1, len(records))
