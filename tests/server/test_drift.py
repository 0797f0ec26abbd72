"""How far nodes moved: by hand, in parts, and who moved too far."""

import numpy as np
import pytest
import torch
from federation import EXAMPLE, TinyNet
from hypothesis import given
from hypothesis import strategies as st

from flwr_autoflip.graph.pack import pack
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.server import drift
from flwr_autoflip.server.drift import (
    Drift,
    find_too_far,
    measure_drift,
    pull_back,
    shares_of_buffers,
    units_of,
)

PLAN = dense_plan(trace(TinyNet(), EXAMPLE))
torch.manual_seed(0)
BEFORE = {name: np.asarray(array) for name, array in arrays_of(TinyNet()).items()}
BEFORE["norm.running_var"] = np.float32([4, 4, 4, 4, 4, 4])


def measured(dtype: str = "float32", **changes: float) -> dict[str, float]:
    """As :func:`drift_of`: how far each tensor moved."""
    return dict(drift_of(dtype, **changes).moved)


def drift_of(dtype: str = "float32", **changes: float) -> Drift:
    """Add to every value of some tensors, and measure."""
    after = {
        name: array + np.asarray(changes.get(name.replace(".", "_"), 0), array.dtype)
        for name, array in BEFORE.items()
    }
    values, before = (pack(arrays, PLAN).astype(dtype) for arrays in (after, BEFORE))
    units = units_of(before, PLAN)
    return measure_drift(values, before, units, PLAN, examples=10)


def test_changes_are_in_units_of_what_they_change() -> None:
    weights = [BEFORE[t.name].ravel() for t in PLAN.layout.tensors if t.trainable]
    flat = np.concatenate(weights).astype(float)

    moved = measured(fc2_weight=0.5, norm_running_mean=0.5, norm_running_var=2.0)

    expected = np.sqrt(24 * 0.5**2 / flat.size) / np.sqrt(np.square(flat).mean())
    assert moved[""] == pytest.approx(expected, rel=1e-5)
    assert moved["norm.running_mean"] == pytest.approx(0.25, rel=1e-4)
    assert moved["norm.running_var"] == pytest.approx(0.5, rel=1e-4)
    assert moved["norm.num_batches_tracked"] == 0
    assert measured(norm_num_batches_tracked=5)["norm.num_batches_tracked"] == 0.5


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parts_add_up(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured(dtype, fc1_weight=0.5, norm_running_mean=0.5)
    monkeypatch.setattr(drift, "_PART", 7)

    parts = measured(dtype, fc1_weight=0.5, norm_running_mean=0.5)

    assert parts == pytest.approx(whole, rel=1e-5)


def test_what_no_float_of_32_bits_holds_is_measured_too() -> None:
    assert np.isfinite(measured(fc1_weight=2.0**64)[""])


@pytest.mark.parametrize(
    ("name", "change"),
    [("norm_running_var", -4.5), ("norm_num_batches_tracked", -1.0)],
)
def test_buffers_that_cannot_be_are_told(name: str, change: float) -> None:
    found = drift_of(**{name: change})

    (told,) = found.impossible
    assert told.replace(".", "_") == name
    assert found.moved[told] == 0
    assert shares_of_buffers([found]) == [{told: 0.0}]
    assert drift_of(**{name: -change}).impossible == frozenset()


def test_a_counter_beyond_what_sixteen_bits_hold_did_not_go_back() -> None:
    before = {**BEFORE, "norm.num_batches_tracked": np.array(5_001)}
    after = {**BEFORE, "norm.num_batches_tracked": np.array(5_003)}
    values, start = (pack(a, PLAN).astype(np.float16) for a in (after, before))

    units = units_of(start, PLAN)
    moved = measure_drift(values, start, units, PLAN, examples=100).moved

    assert moved["norm.num_batches_tracked"] <= 0.04


# --- Who moved too far ---

steps = st.lists(st.floats(1, 10_000), min_size=3, max_size=30)


@given(
    steps, st.floats(0.3, 1), st.lists(st.floats(0.6, 1.6), min_size=30, max_size=30)
)
def test_nobody_is_refused_for_its_size(
    sizes: list[float], power: float, luck: list[float]
) -> None:
    # Training moves weights in proportion to steps at most, and a few times that.
    moved = [0.001 * s**power * x for s, x in zip(sizes, luck, strict=False)]
    drifts = [Drift(s, {"": min(m, 1.0)}) for s, m in zip(sizes, moved, strict=True)]

    assert find_too_far(drifts) == {}


def test_a_number_of_examples_lets_a_node_move_so_far_and_no_farther() -> None:
    others = [Drift(10, {"": 0.05})] * 4

    for moved, refused in ((0.2, False), (2.9, False), (3.1, True)):
        found = find_too_far([*others, Drift(2.0**53, {"": moved})])
        assert (4 in found) == refused
    assert 4 in find_too_far([*others, Drift(10, {"": 0.6})])


def test_where_nobody_moves_a_buffer_nobody_may() -> None:
    still = [Drift(10, {"": 0.05, "norm.running_mean": 0.0})] * 4
    moving = [Drift(10, {"": 0.05, "norm.running_mean": 0.9})] * 4
    one = Drift(10, {"": 0.05, "norm.running_mean": 1.0})

    (far,) = find_too_far([*still, one])[4]
    assert far.name == "norm.running_mean"
    assert find_too_far([*moving, one]) == {}


def test_nodes_that_did_not_train_are_nobodys_measure() -> None:
    idle = [Drift(1, {"": 0.0})] * 9

    assert find_too_far([*idle, *[Drift(10, {"": 0.5})] * 3]) == {}
    assert find_too_far([Drift(1, {"": 0.5}), Drift(1, {"": 99.0})]) == {}


def test_all_that_went_too_far_is_told_and_taken_back_by_hand() -> None:
    usual = [Drift(10, {"": 0.05, "a": 0.5, "b": 0.5, "c": 0.5})] * 4
    one = Drift(10, {"": 0.05, "a": 10.0, "b": 50.0, "c": 0.5}, frozenset({"c"}))

    (found,) = find_too_far([*usual, one]).values()

    assert [far.name for far in found] == ["a", "b"]  # the limit is 10 x .5
    shares = shares_of_buffers([*usual, one])
    assert shares == [{}] * 4 + [{"a": 0.5, "b": 0.1, "c": 0.0}]


def test_what_is_pulled_back_by_hand() -> None:
    before = pack(BEFORE, PLAN)
    after = {**BEFORE, "norm.running_var": BEFORE["norm.running_var"] + 8}
    after["fc2.bias"] = BEFORE["fc2.bias"] + 1
    values = pack(after, PLAN)

    held = pull_back(values, before, {"norm.running_var": 0.25}, PLAN)

    expected = {**after, "norm.running_var": np.float32([6, 6, 6, 6, 6, 6])}
    np.testing.assert_array_equal(held, pack(expected, PLAN))
    np.testing.assert_array_equal(values, pack(after, PLAN))  # not in place
