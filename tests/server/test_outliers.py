"""How far nodes moved: by hand, and whose change is an outlier."""

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
from flwr_autoflip.server.round.outliers import (
    Change,
    Start,
    refuse_outliers,
    shares_of_buffers,
)

PLAN = dense_plan(trace(TinyNet(), EXAMPLE))
torch.manual_seed(0)
BEFORE = {name: np.asarray(array) for name, array in arrays_of(TinyNet()).items()}
BEFORE["norm.running_var"] = np.float32([4, 4, 4, 4, 4, 4])
START = Start(pack(BEFORE, PLAN), PLAN)


def change_of(**added: float) -> Change:
    """Add to every value of some tensors, and measure."""
    after = {
        name: array + np.asarray(added.get(name.replace(".", "_"), 0), array.dtype)
        for name, array in BEFORE.items()
    }
    return START.measure(pack(after, PLAN), examples=10)


def test_changes_are_in_units_of_what_they_change() -> None:
    weights = [BEFORE[t.name].ravel() for t in PLAN.layout.tensors if t.trainable]
    flat = np.concatenate(weights).astype(float)

    change = change_of(fc2_weight=0.5, norm_running_mean=0.5, norm_running_var=2.0)

    expected = np.sqrt(24 * 0.5**2 / flat.size) / np.sqrt(np.square(flat).mean())
    assert change.parameters == pytest.approx(expected, rel=1e-5)
    assert change.buffers == {
        "norm.running_mean": pytest.approx(0.25, rel=1e-4),
        "norm.running_var": pytest.approx(0.5, rel=1e-4),
        "norm.num_batches_tracked": 0,
    }
    grown = change_of(norm_num_batches_tracked=5).buffers  # half a batch an example
    assert grown["norm.num_batches_tracked"] == 0.05


def test_of_an_update_only_the_norm_may_be_known() -> None:
    norm = np.sqrt(24 * 0.5**2)

    known, whole = START.measure_norm(norm, 10), change_of(fc2_weight=0.5)

    assert known.parameters == pytest.approx(whole.parameters, rel=1e-5)


def test_what_no_float_of_32_bits_holds_is_measured_too() -> None:
    assert np.isfinite(change_of(fc1_weight=2.0**64).parameters)


@pytest.mark.parametrize(
    ("name", "change"),
    [("norm_running_var", -4.5), ("norm_num_batches_tracked", -1.0)],
)
def test_buffers_that_cannot_be_are_put_back_whole(name: str, change: float) -> None:
    (shares,) = shares_of_buffers([change_of(**{name: change})])

    assert {n.replace(".", "_"): share for n, share in shares.items()} == {name: 0.0}
    assert shares_of_buffers([change_of(**{name: -change})]) == [{}]


# --- Outliers ---

steps = st.lists(st.floats(1, 10_000), min_size=3, max_size=30)


@given(
    steps, st.floats(0.3, 1), st.lists(st.floats(0.6, 1.6), min_size=30, max_size=30)
)
def test_nobody_is_refused_for_its_size(
    sizes: list[float], power: float, luck: list[float]
) -> None:
    # Training moves weights in proportion to steps at most, and a few times that.
    moved = [0.001 * s**power * x for s, x in zip(sizes, luck, strict=False)]
    changes = [Change(s, min(m, 1.0)) for s, m in zip(sizes, moved, strict=True)]

    assert refuse_outliers(changes) == {}


def test_a_number_of_examples_lets_a_node_move_so_far_and_no_farther() -> None:
    others = [Change(10, 0.05)] * 4

    for moved, refused in ((0.2, False), (2.9, False), (3.1, True)):
        found = refuse_outliers([*others, Change(2.0**53, moved)])
        assert (4 in found) == refused
    assert 4 in refuse_outliers([*others, Change(10, 0.6)])


def test_where_nobody_moves_a_buffer_nobody_may() -> None:
    def changes(others: float) -> list[Change]:
        moved = [others, others, others, others, 1.0]
        return [Change(10, 0.05, {"norm.running_mean": m}) for m in moved]

    assert shares_of_buffers(changes(0.0))[4] == {"norm.running_mean": 0.1}
    assert shares_of_buffers(changes(0.9))[4] == {}


def test_nodes_that_did_not_train_are_nobodys_measure() -> None:
    idle = [Change(1, 0.0)] * 9

    assert refuse_outliers([*idle, *[Change(10, 0.5)] * 3]) == {}
    assert refuse_outliers([Change(1, 0.5), Change(1, 99.0)]) == {}
    assert list(refuse_outliers([None, *[Change(10, 0.5)] * 3, Change(10, 9)])) == [4]


def test_all_buffers_that_are_outliers_are_put_back_by_hand() -> None:
    usual = [Change(10, 0.05, {"a": 0.5, "b": 0.5, "c": 0.5})] * 4
    one = Change(10, 0.05, {"a": 10.0, "b": 50.0, "c": np.nan})

    shares = shares_of_buffers([*usual, one])

    # The limit is 10 x .5; what cannot be is put back whole.
    assert shares == [{}] * 4 + [{"a": 0.5, "b": 0.1, "c": 0.0}]


def test_a_counter_may_grow_by_a_batch_an_example_and_no_more() -> None:
    name = "norm.num_batches_tracked"
    usual, most, over = (Change(10, 0.05, {name: x}) for x in (0.001, 0.1, 0.4))

    shares = shares_of_buffers([usual, usual, usual, most, over])

    assert shares == [{}] * 4 + [{name: 0.25}]


def test_what_is_put_back_by_hand() -> None:
    after = {**BEFORE, "norm.running_var": BEFORE["norm.running_var"] + 8}
    after["fc2.bias"] = BEFORE["fc2.bias"] + 1
    values = pack(after, PLAN)

    held = START.put_back(values, {"norm.running_var": 0.25})

    expected = {**after, "norm.running_var": np.float32([6, 6, 6, 6, 6, 6])}
    np.testing.assert_array_equal(held, pack(expected, PLAN))
    np.testing.assert_array_equal(values, pack(after, PLAN))  # not in place
