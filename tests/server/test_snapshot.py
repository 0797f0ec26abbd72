"""What strategies remember, and the process's generators."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Strategy,
)

from flwr_autoflip.methods import Dense, Policy
from flwr_autoflip.server.snapshot import (
    KINDS,
    attributes_of,
    describe_policy,
    differences,
    restore_inplace,
    set_generators,
    settings_of,
    take_generators,
    warn_unsaved,
)
from flwr_autoflip.server.tree import TreeReader, TreeWriter


class Accountant:
    """Stands for Flower's, which needs a library of its own."""

    def __init__(self) -> None:
        self.spent = [0.0]

    def state_dict(self) -> dict[str, Any]:
        return {"spent": self.spent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.spent = state["spent"]


class Rich(FedAvg):
    """A strategy with state of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[int, list[float]] = {}
        self.generator = np.random.default_rng(1)
        self.chance = random.Random(1)
        self.moments = torch.zeros(2)
        self.accountant = Accountant()

    def live(self) -> None:
        self.history[3] = [0.5, float("inf")]
        self.generator.random(5)
        self.chance.random()
        self.moments = torch.ones(2)
        self.accountant.spent = [1.5]
        self.late = (1, "new")


def moved(one: Strategy, other: Strategy) -> None:
    """Carry what one remembers to the other, as a file would."""
    writer = TreeWriter(KINDS)
    written = writer.write(attributes_of(one))
    restore_inplace(other, TreeReader(writer.arrays, KINDS).read(written))


def test_state_of_many_kinds_arrives() -> None:
    one, other = Rich(), Rich()
    one.live()

    moved(one, other)

    assert other.history == one.history
    assert other.generator.random() == one.generator.random()
    assert other.chance.random() == one.chance.random()
    torch.testing.assert_close(other.moments, one.moments)
    assert other.accountant.spent == [1.5]
    assert other.late == (1, "new")


def test_flowers_strategies_and_those_inside_them() -> None:
    adam = FedAdam()
    adam.m_t, adam.v_t = {"w": np.float64([1, 2])}, {"w": np.float64([3, 4])}
    one = DifferentialPrivacyServerSideAdaptiveClipping(adam, 0.1, 4)
    one.clipping_norm = 0.7
    other = DifferentialPrivacyServerSideAdaptiveClipping(FedAdam(), 0.1, 4)

    moved(one, other)

    assert other.clipping_norm == 0.7
    np.testing.assert_array_equal(other.strategy.m_t["w"], [1, 2])
    np.testing.assert_array_equal(other.strategy.v_t["w"], [3, 4])


def test_momentum_and_its_record() -> None:
    one, other = FedAvgM(), FedAvgM(min_train_nodes=5)
    one.momentum_vector = [np.float32([1, 2]), np.float32([3])]
    one.current_arrays = ArrayRecord({"w": Array(np.float32([1, 2]))})

    moved(one, other)

    assert [m.tolist() for m in other.momentum_vector] == [[1, 2], [3]]
    np.testing.assert_array_equal(other.current_arrays["w"].numpy(), [1, 2])
    assert other.min_train_nodes == 5  # how many are connected now, not then


def test_what_cannot_be_saved_is_named_once() -> None:
    @dataclass(frozen=True)
    class Fixed:
        x: int

    inner = FedAvg(train_metrics_aggr_fn=lambda contents, key: None)  # type: ignore[arg-type,return-value]
    inner.fixed = Fixed(3)  # type: ignore[attr-defined]
    warn_unsaved(inner)  # functions and constants are no state
    inner.writer = object()  # type: ignore[attr-defined]
    outer = DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.1, 4)
    outer.seen = {1: object()}  # type: ignore[attr-defined]

    with pytest.warns(UserWarning, match="checkpoints cannot hold") as caught:
        warn_unsaved(outer)

    assert len(caught) == 1
    assert "strategy.writer (object), seen (dict)" in str(caught[0].message)
    assert "writer" not in attributes_of(outer)["strategy"]


def test_settings_name_class_and_numbers_but_not_who_is_there() -> None:
    one = settings_of(FedAvg(fraction_train=0.5, min_train_nodes=2))
    other = settings_of(FedAvgM(fraction_train=0.25, min_train_nodes=9))

    found = {name: (was, now) for name, was, now in differences(one, other)}

    assert found["strategy"] == ("FedAvg", "FedAvgM")
    assert found["strategy.fraction_train"] == ("0.5", "0.25")
    assert found["strategy.server_momentum"] == ("absent", "0.0")
    assert "strategy.min_train_nodes" not in found
    assert not list(differences(one, one))


def test_a_policy_that_is_no_dataclass_goes_by_its_class() -> None:
    class Own(Policy):
        def __call__(self, *args: Any) -> Any:
            return None

    assert "0x" not in describe_policy(Own())
    assert describe_policy(Own()).endswith("Own")
    assert describe_policy(Dense()) == "Dense()"


def test_generators_go_on_where_they_were() -> None:
    states = take_generators()
    draw = lambda: (random.random(), np.random.random(), float(torch.rand(())))  # noqa: E731, NPY002
    expected = draw()

    writer = TreeWriter(KINDS)
    written = writer.write(states)
    set_generators(TreeReader(writer.arrays, KINDS).read(written))

    assert draw() == expected
