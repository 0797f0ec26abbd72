"""The value that a run is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from ..graph.layout import Layout, check_arrays
from ..methods.base import Method, State
from ..wire import from_arrayrecord, to_arrayrecord

Metrics = Mapping[int, MetricRecord]


@dataclass(frozen=True)
class RunState:
    """All that a run knows between two steps; a checkpoint is its serialisation.

    Parameters
    ----------
    method : State
        The method's own.
    arrays : ArrayRecord
        The dense global model; the inner strategy may hold the same object.
    train_config, evaluate_config : ConfigRecord
        The app's; strategies change them from round to round.
    trained : int (default: 0)
        The last round whose training is done.
    done : int (default: 0)
        The last round that is done, evaluation included.
    sampled : mapping of int to ConfigRecord (default: empty)
        Once nodes have explored in a round that is not trained yet: whom the inner
        strategy sampled, and what it tells them.
    budgets : mapping of int to str
        Node id to what it said it can carry; "" is the dense model.
    train, evaluate, server : mapping of int to MetricRecord
        Figures of each round, as in Flower's ``Result``.
    inner : dict (default: empty)
        The inner strategy's attributes, as of the checkpoint.
    """

    method: State
    arrays: ArrayRecord
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    trained: int = 0
    done: int = 0
    sampled: Mapping[int, ConfigRecord] = field(default_factory=dict)
    budgets: Mapping[int, str] = field(default_factory=dict)
    train: Metrics = field(default_factory=dict)
    evaluate: Metrics = field(default_factory=dict)
    server: Metrics = field(default_factory=dict)
    inner: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(
        cls,
        method: Method[Any],
        layout: Layout,
        arrays: ArrayRecord,
        train_config: ConfigRecord | None,
        evaluate_config: ConfigRecord | None,
    ) -> "RunState":
        """Begin a run; the caller's records stay as they are.

        Raises ``AutoFlipError`` if the arrays are not those of the layout's model.
        """
        given = from_arrayrecord(arrays)
        check_arrays(layout, given, whose="initial arrays")
        state, weights = method.begin(layout, given)
        return cls(
            state,
            to_arrayrecord(weights),
            ConfigRecord(dict(train_config or {})),
            ConfigRecord(dict(evaluate_config or {})),
        )
