"""AutoFLIP's choices by hand: what explorers show, and what comes of it."""

from typing import Any

import numpy as np
import pytest
from models import mlp_layout, random_arrays
from rounds import REPORT, after_round, carried_out

from flwr_autoflip.errors import AutoFlipWarning
from flwr_autoflip.methods import L1, Guided, autoflip
from flwr_autoflip.methods.rescale import rescale_fan_in
from flwr_autoflip.methods.threshold import (
    Absolute,
    Cumulative,
    Quantile,
)

LAYOUT = mlp_layout()
WEIGHTS = random_arrays(LAYOUT)


def kept(method: Guided, *reports: Any) -> list[int]:
    state, _ = after_round(method, LAYOUT, WEIGHTS, reports or [REPORT, REPORT])
    assert state.plan.mask == {}
    return state.plan.keep["fc1"].tolist()


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (Absolute(0.375), [1, 2]),  # equal is kept
        (Absolute(0.38), [1]),
        (Quantile(0.25), [1, 2, 3]),  # one of four is pruned
        (Quantile(0.5, "global"), [1, 2]),  # above the median (.3125 + .375) / 2
        (Cumulative(0.7), [1, 2]),  # sum 1.6875: 1 is .59, 1.375 is .81
        ("2x", [1]),  # n neurons have 6n + 2 parameters of 26: 8, 14, 20, 26
        ("macs:0.5", [1, 2]),  # n neurons cost 5n of 20 MACs
        ({"fc1": 3}, [1, 2, 3]),
    ],
    ids=str,
)
def test_units_by_score(threshold: Any, expected: list[int]) -> None:
    assert kept(Guided(threshold=threshold)) == expected


def test_no_node_decides_by_its_scale_and_a_median_by_its_values() -> None:
    other = {n: np.float32(1e6) * values[::-1] for n, values in REPORT.items()}
    mean, median = Guided(macs=0.25), Guided(macs=0.25, aggregator="median")

    # Alone, the other's best is neuron 2; two of REPORT outweigh it.
    assert kept(mean, REPORT, other, REPORT) == [1]
    # Rows 0 8 4 2 and 2 4 8 0, a bias of 0 10 0 5 and 5 0 10 0, at one scale.
    assert kept(mean, other, other, REPORT) == [2]
    assert kept(median, REPORT, other, REPORT) == [1]


def test_what_rounds_ask() -> None:
    method = Guided(macs=0.5)
    state, weights = method.begin(LAYOUT, WEIGHTS)
    assert weights is WEIGHTS

    first = method.order(state, 1, [3, 4])
    again = method.order(state, 2, [3, 4])  # the first round was lost
    state, weights = method.learn(state, carried_out(first, [REPORT] * 2, WEIGHTS))
    later = method.order(state, 2, [3, 4])

    assert (first.who, first.payload, first.epochs) == ("round", "values", None)
    assert first.whole
    assert again.whole
    assert first.plan.alive.all()
    assert later.plan is state.plan
    assert not later.whole
    np.testing.assert_array_equal(state.plan.keep["fc1"], [1, 2])
    for name, array in rescale_fan_in(WEIGHTS, state.plan).items():
        np.testing.assert_array_equal(weights[name], array)
    unchanged = method.learn(state, carried_out(later, [REPORT], WEIGHTS, 2))
    assert unchanged == (state, WEIGHTS)
    np.testing.assert_allclose(
        method.importance(state, weights)["fc1"], [0, 1, 0.375, 0.3125]
    )
    _, unscaled = after_round(Guided(rescale=False), LAYOUT, WEIGHTS, [REPORT] * 2)
    assert unscaled is WEIGHTS


# --- Sums by unit instead of whole reports ---


def test_sums_by_unit_by_hand() -> None:
    reports = [{"fc1": np.float32([4, 0, 2, 3])}, {"fc1": np.float32([4, 0, 4, 1])}]
    method = Guided(threshold=0.6, report="units")
    state, _ = method.begin(LAYOUT, WEIGHTS)

    assert method.order(state, 1, [0]).payload == "units"
    # Of mean 1: 16 0 8 12 and 16 0 16 4 ninths; together 16 0 12 8 -> 1 0 .75 .5
    assert kept(method, *reports) == [0, 2]


# --- Too little to go by ---


def test_without_explorers_the_weights_decide_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(autoflip.LOGGER, "warning", said.append)

    state, weights = after_round(Guided(macs=0.5), LAYOUT, WEIGHTS, [])

    expected, rescaled = L1(macs=0.5).begin(LAYOUT, WEIGHTS)
    np.testing.assert_array_equal(state.plan.keep["fc1"], expected.plan.keep["fc1"])
    np.testing.assert_array_equal(weights["fc2.weight"], rescaled["fc2.weight"])
    assert Guided().order(state, 1, [0]).plan is state.plan  # the round goes on with it
    assert "chosen by weight" in said[0]


@pytest.mark.parametrize(
    ("threshold", "reports", "message"),
    [(0.38, [REPORT], "one explorer only"), (0.0, [REPORT] * 2, "prunes nothing")],
)
def test_warnings(threshold: float, reports: Any, message: str) -> None:
    with pytest.warns(AutoFlipWarning, match=message):
        kept(Guided(threshold=threshold), *reports)
