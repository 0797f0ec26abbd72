"""What the inner strategy remembers, and whether it draws noise."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    Krum,
    Strategy,
)

from flwr_autoflip import AutoFlipWarning
from flwr_autoflip.server.persistence.inner import (
    Beginning,
    attributes_of,
    draws_noise,
    restore_inplace,
    seed_anew,
    settings_of,
    warn_unsaved,
)
from flwr_autoflip.server.persistence.tree import Tree


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
        self.noise_seed = 3
        self.generator = np.random.default_rng(self.noise_seed)
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


def adaptive(inner: Strategy) -> Any:
    return DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.1, 4)


def moved(one: Strategy, other: Strategy) -> None:
    """Carry what one remembers to the other, as a file would."""
    writer = Tree()
    written = json.loads(json.dumps(writer.write(attributes_of(one))))
    restore_inplace(other, Tree(arrays=writer.arrays).read(written))


# --- Taken, and put back ---


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
    one, other = adaptive(adam), adaptive(FedAdam(min_train_nodes=5))
    one.clipping_norm = 0.7

    moved(one, other)

    assert other.clipping_norm == 0.7
    np.testing.assert_array_equal(other.strategy.m_t["w"], [1, 2])
    np.testing.assert_array_equal(other.strategy.v_t["w"], [3, 4])
    assert other.strategy.min_train_nodes == 5  # how many are connected now, not then


def test_what_foretells_noise_is_not_taken() -> None:
    taken = attributes_of(Rich(), noisy=True)

    assert {"history", "moments", "accountant"} <= set(taken)
    assert not {"generator", "chance", "noise_seed"} & set(taken)
    assert {"generator", "chance", "noise_seed"} <= set(attributes_of(Rich()))


def test_what_cannot_be_saved_is_named_once() -> None:
    @dataclass(frozen=True)
    class Fixed:
        x: int

    inner = FedAvg(train_metrics_aggr_fn=lambda contents, key: None)  # type: ignore[arg-type,return-value]
    inner.fixed = Fixed(3)  # type: ignore[attr-defined]
    warn_unsaved(inner)  # functions and constants are no state
    inner.writer = object()  # type: ignore[attr-defined]
    outer = adaptive(inner)
    outer.seen = {1: object()}

    with pytest.warns(AutoFlipWarning, match="checkpoints cannot hold") as caught:
        warn_unsaved(outer)

    assert len(caught) == 1
    assert "strategy.writer (object), seen (dict)" in str(caught[0].message)
    assert "strategy.writer" not in attributes_of(outer)


def test_settings_name_class_and_numbers_but_not_who_is_there() -> None:
    one = settings_of(FedAvg(fraction_train=0.5, min_train_nodes=2))
    other = settings_of(adaptive(FedAvgM(fraction_train=0.25)))

    assert one["strategy"] == "FedAvg"
    assert one["strategy.fraction_train"] == "0.5"
    assert "strategy.min_train_nodes" not in one
    assert other["strategy"].startswith("DifferentialPrivacy")
    assert other["strategy.strategy"] == "FedAvgM"
    assert other["strategy.strategy.server_momentum"] == "0.0"
    assert "strategy.noise_seed" in settings_of(Rich())
    assert "strategy.noise_seed" not in settings_of(Rich(), noisy=True)


# --- Noise ---


class OwnNoise(FedAvg):
    """An app's own aggregation."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        return super().aggregate_train(server_round, replies)


class Around(Strategy):
    """An app's own wrapper, with a name of its own for what is inside."""

    def __init__(self, inner: Strategy) -> None:
        self.wrapped = inner

    def configure_train(self, *args: Any) -> Any:
        return self.wrapped.configure_train(*args)

    aggregate_train = FedAvg.aggregate_train
    configure_evaluate = configure_train

    def aggregate_evaluate(self, *args: Any) -> Any:
        return self.wrapped.aggregate_evaluate(*args)

    def summary(self) -> None:
        self.wrapped.summary()


def patched() -> Strategy:
    strategy = FedAvg()
    strategy.aggregate_train = OwnNoise().aggregate_train  # type: ignore[method-assign]
    return strategy


def fixed() -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 4)


@pytest.mark.parametrize(
    ("strategy", "noisy"),
    [
        *((each, False) for each in (FedAvg(), FedAdam(), FedMedian(), Krum())),
        (Around(FedAvg()), False),
        (fixed(), True),
        (DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.1, 1.0, 4), True),
        (adaptive(FedAdam()), True),
        (OwnNoise(), True),
        (patched(), True),
        (Around(fixed()), True),
    ],
)
def test_noise_is_looked_for_wherever_it_may_be(
    strategy: Strategy, noisy: bool
) -> None:
    assert draws_noise(strategy) is noisy


def test_generators_are_seeded_anew_wherever_they_are() -> None:
    one, outer = Rich(), Around(Rich())
    inner: Any = outer.wrapped
    inner.more = {"a": [random.Random(1), (torch.Generator().manual_seed(1),)]}
    more = random.Random(1), torch.Generator().manual_seed(1)
    states = random.getstate(), torch.get_rng_state(), np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002

    seed_anew(outer)

    chance, (torchs,) = inner.more["a"]
    assert inner.generator.random() != one.generator.random()
    assert inner.chance.random() != one.chance.random()
    assert chance.random() != more[0].random()
    assert torchs.initial_seed() != more[1].initial_seed()
    assert random.getstate() != states[0]
    assert (torch.get_rng_state() != states[1]).any()
    assert np.random.random() != states[2]  # noqa: NPY002


# --- One object, started twice ---


def test_a_later_run_begins_where_the_first_did() -> None:
    strategy = adaptive(Rich())
    inner, beginning = strategy.strategy, Beginning(strategy)
    drawn = []
    for _ in range(2):
        with beginning.restored():
            drawn.append(inner.generator.random())
            inner.live()
            strategy.clipping_norm = 9.0
        history = inner.history
        assert history == {3: [0.5, float("inf")]}  # as the app may see it

    with beginning.restored():
        assert inner.history == {}
        assert not hasattr(inner, "late")
        assert inner.accountant.spent == [0.0]
        assert strategy.clipping_norm == 0.1
        torch.testing.assert_close(inner.moments, torch.zeros(2))
    assert drawn[0] == drawn[1]
    assert history  # the app's own look at it is not emptied


@pytest.mark.filterwarnings("ignore:this run begins with generator")
def test_where_noise_is_drawn_generators_go_on() -> None:
    strategy = Rich()
    beginning, drawn = Beginning(strategy), set()
    for _ in range(3):
        with beginning.restored(noisy=True):
            drawn |= {strategy.generator.random(), strategy.chance.random()}

    assert len(drawn) == 6


def test_what_the_app_assigns_between_runs_stays() -> None:
    strategy = Rich()
    beginning = Beginning(strategy)
    with beginning.restored():
        strategy.live()
    strategy.moments, strategy.fraction_train = torch.full((2,), 5.0), 0.25
    for _ in range(2):
        with beginning.restored():
            torch.testing.assert_close(strategy.moments, torch.full((2,), 5.0))
            assert strategy.fraction_train == 0.25
            strategy.live()


def test_what_a_privacy_accountant_counted_stays() -> None:
    strategy = Rich()
    strategy.accountant.get_privacy_spent = lambda: 0  # type: ignore[attr-defined]
    beginning = Beginning(strategy)
    with beginning.restored():
        strategy.live()

    with beginning.restored():
        assert strategy.accountant.spent == [1.5]


def test_what_no_copy_can_be_made_of_is_named_from_the_second_run_on() -> None:
    strategy: Any = Rich()
    strategy.writer = object()
    beginning = Beginning(strategy)
    with beginning.restored():
        pass

    with (
        pytest.warns(AutoFlipWarning, match=r"this run begins with writer \(object\)"),
        beginning.restored(),
    ):
        pass
