"""Automatic structured pruning, by hand."""

from typing import Any

import numpy as np
import pytest
from models import flat_layout, mlp_layout

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.methods import Previous, Structured
from flwr_autoflip.methods.baselines.structured import distance_to_mean, unit_sums
from flwr_autoflip.methods.threshold import Absolute, Compression, MacShare, Mass

LAYOUT = mlp_layout()
DENSE = Previous(dense_plan(LAYOUT), 0)


def weights(*sums: float) -> dict[str, np.ndarray]:
    """Arrays whose neurons have these sums of |w|, spread over three inputs."""
    full = {t.name: np.zeros(t.shape, np.float32) for t in LAYOUT.tensors}
    full["fc1.weight"] = np.outer(sums, [0.5, -0.25, 0.25]).astype(np.float32)
    full["fc1.bias"][:] = 1000  # kernels only
    full["fc2.weight"][:] = 77
    return full


def kept(policy: Structured, server_round: int, *sums: float, **held: Any) -> list[int]:
    previous = held.get("previous", DENSE)
    plan = policy(server_round, LAYOUT, weights(*sums), [], previous)
    return plan.keep["fc1"].tolist()


def test_both_tails_go() -> None:
    # 4, 4, 10, 6: mean 6, variance (4 + 4 + 16 + 0) / 4 = 6, sd 2.45.
    assert kept(Structured(k=1.7), 2, 4, 4, 10, 6) == [0, 1, 2, 3]
    assert kept(Structured(k=1.6), 2, 4, 4, 10, 6) == [0, 1, 3]  # 4 / 2.45 = 1.63
    assert kept(Structured(k=0.5), 2, 4, 4, 10, 6) == [3]  # 2 / 2.45 = .82


def test_limits_are_part_of_the_range() -> None:
    # 0, 2, 2, 4: sd is sqrt(2); 1 and 3, twice each: all at exactly one sd.
    assert kept(Structured(k=1.0), 2, 1, 3, 1, 3) == [0, 1, 2, 3]
    assert kept(Structured(k=1.0), 2, 0, 2, 2, 4) == [1, 2]


def test_if_all_would_go_the_nearest_stays() -> None:
    assert kept(Structured(k=0.1), 2, 1, 3, 1, 3.5) == [1]


def test_equal_units_all_stay() -> None:
    assert kept(Structured(k=0.1), 2, 0.3, 0.3, 0.3, 0.3) == [0, 1, 2, 3]


def test_units_that_went_neither_return_nor_count() -> None:
    held = Previous(Plan(LAYOUT, {"fc1": np.array([0, 1, 3])}), 2)

    # Of 4, 4, 7 the mean is 5 and sd 1.41; the fourth, 1000, is not there.
    policy = Structured(k=1.3)
    assert kept(policy, 3, 4, 4, 1000, 7, previous=held) == [0, 1]
    assert kept(Structured(k=1.5), 3, 4, 4, 1000, 7, previous=held) == [0, 1, 3]


def test_columns_of_filters_that_went_do_not_count() -> None:
    layout = flat_layout()
    arrays = {t.name: np.zeros(t.shape, np.float32) for t in layout.tensors}
    arrays["fc1.weight"] = np.float32([[9, 9, 1, -2], [9, 9, 0, 4], [9, 9, 5, 0]])
    plan = Plan(layout, {"conv": np.array([1]), "fc1": np.array([0, 1])})

    sums = unit_sums(layout, arrays, plan)

    np.testing.assert_array_equal(sums["fc1"], [3, 4, 0])


def test_distance_is_infinite_for_units_that_went() -> None:
    found = distance_to_mean(
        {"a": np.array([1.0, 5.0, 7.0])}, {"a": np.array([True, True, False])}
    )

    np.testing.assert_array_equal(found["a"], [1, 1, np.inf])


def test_rounds_and_patience() -> None:
    policy = Structured(k=0.5)

    def prunes(server_round: int, since: int) -> bool:
        held = Previous(dense_plan(LAYOUT), since)
        return len(kept(policy, server_round, 4, 4, 10, 6, previous=held)) < 4

    assert not prunes(1, 0)  # the first round trains the whole model
    assert [prunes(r, 0) for r in (2, 3, 4, 5)] == [True, True, True, False]
    assert [prunes(r, 20) for r in (21, 22, 23, 24)] == [True, True, True, False]
    assert prunes(51, 50)
    assert not prunes(52, 51)


def test_the_first_plan_is_dense() -> None:
    assert Structured()(0, LAYOUT, weights(4, 4, 10, 6), []).alive.all()


def test_a_target_keeps_those_nearest_the_mean_once() -> None:
    # n neurons have 6n + 2 of 26 parameters and cost 5n of 20 MACs.
    by_size = Structured(threshold=Compression(26 / 14))
    by_macs = Structured(threshold=MacShare(0.25))
    by_count = Structured(threshold={"fc1": 3})

    assert kept(by_size, 2, 4, 4.5, 10, 6) == [1, 3]  # mean 6.125
    assert kept(by_macs, 2, 4, 4.5, 10, 6) == [3]
    assert kept(by_count, 2, 4, 4.5, 10, 6) == [0, 1, 3]
    held = Previous(Plan(LAYOUT, {"fc1": np.array([1, 3])}), 2)
    assert kept(by_size, 3, 4, 4.5, 10, 6, previous=held) == [1, 3]


def test_restart_is_an_option() -> None:
    assert Structured().on_change == "restart"
    assert Structured(restart=False).on_change == "keep"
    assert Structured().renewed == "round"
    assert not Structured().explores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": Absolute(0.3)}, "takes its own limits"),
        ({"threshold": Mass()}, "takes its own limits"),
        ({"k": 0.0}, "k must be above 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoFlipError, match=message):
        Structured(**options)
