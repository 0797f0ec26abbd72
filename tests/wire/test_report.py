"""What comes back beside values or instead of them, there and back; what it shows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ZOO, layout_of, mlp_layout, random_arrays, random_plan

from flwr_autoflip import wire
from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.pack import expand, pack
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.methods.guidance import report_by_unit
from flwr_autoflip.wire.encoding import Encoding
from flwr_autoflip.wire.report import (
    append_gradients,
    check_report,
    encode_report,
    split_gradients,
)

LAYOUT = mlp_layout()
MASK = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]], bool)
PLAN = Plan(LAYOUT, {"fc1": np.array([0, 2])}, {"fc1.weight": MASK})
"""2 of 4 neurons; of fc1.weight's 6 values left, one in each row is pruned."""
SEEDS = st.integers(0, 2**32 - 1)


def reply(**parts: Any) -> wire.Reply:
    given = {"values": np.zeros(0), "num_examples": 1, "metrics": {}, "metadata": {}}
    return wire.Reply(**(given | parts))


def shown(
    plan: Plan, start: Any, trained: Any, payload: Any, dtype: str = "float32"
) -> dict[str, np.ndarray]:
    """Give what a reply shows of values before and after."""
    phase: Any = "train" if payload in ("values", "gradients") else "explore"
    asked = wire.Instructions(phase, plan, start, Encoding(dtype), payload=payload)
    if phase == "train":
        return dict(wire.report_of(reply(values=trained), asked))
    sizes, scale = encode_report(start, trained, plan, payload)
    check_report(sizes, scale, plan, payload)
    metadata = {"autoflip-scale": scale}
    return dict(wire.report_of(reply(sizes=sizes, metadata=metadata), asked))


def test_payloads_by_hand() -> None:
    plan = dense_plan(LAYOUT)
    final = {t.name: np.zeros(t.shape, np.float32) for t in LAYOUT.tensors}
    start = pack(final, plan)
    final["fc1.weight"][0] = [2, 4, 4]
    final["fc1.bias"][2] = -4
    final["fc2.bias"][1] = -1
    trained = pack(final, plan)

    moved, scale = encode_report(start, trained, plan, "deviations")
    units, root_scale = encode_report(start, trained, plan, "units")

    # The largest, 4 = .5 * 2^3, becomes 2^13: the scale is 2^(14 - 3).
    assert scale == 2.0**11
    # fc1.weight 12 values, its bias 4, fc2.weight 8, its bias 2.
    expected = np.zeros(26)
    expected[[0, 1, 2, 14, 25]] = [2, 4, 4, 4, 1]
    np.testing.assert_array_equal(moved / scale, expected)
    # Neuron 0: sqrt(4 + 16 + 16) = 6, neuron 2: sqrt(16) = 4; fc2 is nobody's.
    np.testing.assert_array_equal(units / root_scale, [6, 0, 4, 0])
    assert moved.dtype == units.dtype == np.float16
    assert check_report(moved, scale, plan, "deviations") == 53**0.5
    assert check_report(units, root_scale, plan, "units") == 52**0.5


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, masked=st.booleans())
def test_what_replies_show_is_the_change_of_dense_models(
    name: str, seed: int, masked: bool
) -> None:
    plan = random_plan(layout_of(name), seed, masked)
    layout = plan.layout
    before, after = random_arrays(layout, seed), random_arrays(layout, seed + 1)
    start, trained = pack(before, plan), pack(after, plan)
    trainable = [t.name for t in layout.tensors if t.trainable]
    final = expand(before, trained, plan)
    exact = {n: np.square(final[n] - before[n]) for n in trainable}

    report = shown(plan, start, trained, "values")
    assert list(report) == trainable
    for key, array in report.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, exact[key])
    # A root to one part in 2000, so its square to one in 1000.
    for key, array in shown(plan, start, trained, "deviations").items():
        np.testing.assert_allclose(array, exact[key], rtol=1.1e-3, atol=1e-9)
    by_unit = report_by_unit(layout, exact)
    for key, array in shown(plan, start, trained, "units").items():
        np.testing.assert_allclose(array, by_unit[key], rtol=1.1e-3, atol=1e-9)


@pytest.mark.parametrize("name", ["conv_flat", "batch_norm"])
def test_gradients_come_back_at_pruned_single_weights_too(name: str) -> None:
    plan = random_plan(layout_of(name), 3, True)
    arrays = random_arrays(plan.layout, 1)
    sums = {n: plan.take(n, a) for n, a in arrays.items()}
    values = pack(arrays, plan)

    sent = append_gradients(values, sums, plan)
    trained, sizes = split_gradients(sent, plan)

    np.testing.assert_array_equal(trained, values)
    asked = wire.Instructions("train", plan, values, payload="gradients")
    report = wire.report_of(reply(values=trained, sizes=sizes), asked)
    units = plan.without_mask()
    for key, squares in report.items():
        expected = np.where(units.dense_mask(key), np.square(arrays[key]), 0)
        np.testing.assert_array_equal(squares, expected)


def test_gradients_by_hand() -> None:
    values = pack(random_arrays(LAYOUT), PLAN)
    sums = {
        "fc1.weight": np.float32([[1, -2, 0], [3, 0.5, -1]]),
        "fc2.bias": np.float32([-4, np.finfo(np.float32).max]),
    }

    sent = append_gradients(values, sums, PLAN)

    # values: fc1 6 - 2 and 2, fc2 2 x 2 and 2; gradients: two more, at pruned ones.
    assert (PLAN.num_values, sent.shape) == (12, (26,))
    np.testing.assert_array_equal(sent[12:18], [1, 2, 0, 3, 0.5, 1])
    np.testing.assert_array_equal(sent[18:24], 0)
    assert sent[24] == 4


def test_bad_gradients_are_refused() -> None:
    good = append_gradients(pack(random_arrays(LAYOUT), PLAN), {}, PLAN)

    def changed(place: int, value: float) -> np.ndarray:
        bad = good.copy()
        bad[place] = value
        return bad

    for values, message in (
        (good[:-1], "expected 12 values and 14 gradients"),
        (good[:12], "expected 12 values and 14 gradients"),
        (changed(20, -1.0), "at least 0 and finite"),
        (changed(20, np.nan), "at least 0 and finite"),
        (changed(20, np.inf), "at least 0 and finite"),
        (changed(20, 1e30), "at least 0 and finite"),  # its square overflows
        (changed(3, np.nan), "1 of 12 are NaN"),
        (good.astype(np.float64), "dtype float64"),
    ):
        with pytest.raises(WireError, match=message):
            split_gradients(values, PLAN)


@pytest.mark.parametrize("payload", ["deviations", "units"])
def test_reports_that_do_not_fit_are_refused(payload: Any) -> None:
    plan = dense_plan(LAYOUT)
    start, trained = (pack(random_arrays(LAYOUT, seed), plan) for seed in (0, 1))
    values, scale = encode_report(start, trained, plan, payload)
    with pytest.raises(WireError, match="diverged"):
        encode_report(start, trained * np.nan, plan, payload)

    def changed(value: float) -> np.ndarray:
        bad = values.copy()
        bad[0] = value
        return bad

    for faulty, its_scale, message in (
        (values[:-1], scale, "expected float16"),
        (values.astype(np.float32), scale, "expected float16"),
        (values[None], scale, "expected float16"),
        (changed(np.nan), scale, "NaN or infinite"),
        (changed(np.inf), scale, "NaN or infinite"),
        (changed(-1), scale, "at least 0"),
        (values, None, "scale is missing"),
        (values, 0.0, "must be positive"),
        (values, float("nan"), "must be positive"),
        (values, 1e-300, "overflow"),
        (np.ones_like(values), 1e-20, "overflow"),  # of its square
        (np.zeros_like(values), scale, "nothing moved"),
        (np.ones_like(values), scale, "everything moved alike"),
    ):
        with pytest.raises(WireError, match=message):
            check_report(faulty, its_scale, plan, payload)


def test_weights_that_grow_back_start_at_0() -> None:
    start = pack(random_arrays(LAYOUT), PLAN)
    asked = wire.Instructions("train", PLAN, start, regrow=True)
    trained = asked.start + np.float32(0.5)

    report = wire.report_of(reply(values=trained), asked)

    assert PLAN.num_values + 2 == trained.size
    kept = PLAN.without_mask().dense_mask("fc1.weight")
    np.testing.assert_allclose(report["fc1.weight"], 0.25 * kept, rtol=1e-6)
    with pytest.raises(KeyError):
        report["no tensor"]
    assert replace(asked, regrow=False).start is start
