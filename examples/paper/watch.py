"""What the paper plots of a run and the ledger does not hold."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from flwr_autoflip.wire import from_arrayrecord

from .around import Around

BINS = 50


class UpdateVariance(Around):
    """Measure how far nodes' updates are apart, around another strategy.

    Parameters
    ----------
    strategy : Strategy
        Does all the work.
    names : iterable of str
        Trainable tensors.

    Attributes
    ----------
    variances : list of float
        Eq. 4 of arXiv:2405.10271v3, one a round.
    """

    def __init__(self, strategy: Strategy, names: Iterable[str]) -> None:
        super().__init__(strategy)
        self.names = tuple(names)
        self.variances: list[float] = []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Measure, then leave it to the inner strategy."""
        replies = list(replies)
        if server_round > 0:  # exploring is not one of the paper's rounds
            records = [next(iter(r.content.array_records.values())) for r in replies]
            self.variances.append(update_variance(records, self.names))
        return super().aggregate_train(server_round, replies)


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


def guidance_histogram(guidance: Mapping[str, NDArray[Any]]) -> list[int]:
    """Count guidance, which is in [0, 1], in equal bins (Figure 5)."""
    values = np.concatenate([array.ravel() for array in guidance.values()])
    return np.histogram(values, bins=BINS, range=(0, 1))[0].tolist()
