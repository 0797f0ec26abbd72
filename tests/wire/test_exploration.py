"""What an explorer sends, there and back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import flat_layout, layout_of, mlp_layout, random_arrays

from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.layout import Arrays, Layout
from flwr_autoflip.methods.guidance import deviation, report_by_unit
from flwr_autoflip.wire.exploration import (
    PAYLOADS,
    WITH_MODEL,
    check_report,
    decode_report,
    encode_report,
)

IN_16_BITS = ("update", "deviation", "units")


def moved(layout: Layout, seed: int, power: int = -10) -> tuple[Arrays, Arrays]:
    """Draw arrays before and after exploring; steps of about 2^power."""
    initial = random_arrays(layout, seed)
    generator = np.random.default_rng(seed)
    final = {
        name: (a + np.ldexp(generator.uniform(0.5, 1, a.shape), power)).astype(a.dtype)
        for name, a in initial.items()
    }
    return initial, final


def test_payloads_by_hand() -> None:
    layout = mlp_layout()
    initial = {t.name: np.zeros(t.shape, np.float32) for t in layout.tensors}
    final = {name: array.copy() for name, array in initial.items()}
    final["fc1.weight"][0] = [2, 4, 4]
    final["fc1.bias"][2] = -4
    final["fc2.bias"][1] = -1

    update, scale = encode_report(initial, final, layout, "update")
    size, _ = encode_report(initial, final, layout, "deviation")
    units, root_scale = encode_report(initial, final, layout, "units")

    # The largest, 4 = .5 * 2^3, becomes 2^13: the scale is 2^(14 - 3).
    assert scale == 2.0**11
    # fc1.weight 12 values, its bias 4, fc2.weight 8, its bias 2.
    expected = np.zeros(26)
    expected[[0, 1, 2, 14, 25]] = [2, 4, 4, -4, -1]
    np.testing.assert_array_equal(update / scale, expected)
    np.testing.assert_array_equal(size / scale, np.abs(expected))
    # Neuron 0: sqrt(4 + 16 + 16) = 6, neuron 2: sqrt(16) = 4; fc2 is nobody's.
    np.testing.assert_array_equal(units / root_scale, [6, 0, 4, 0])
    assert update.dtype == size.dtype == units.dtype == np.float16


@pytest.mark.parametrize("name", ["conv_flat", "batch_norm", "concat_residual_flatten"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), power=st.integers(-12, 4))
def test_deviations_survive_every_payload(name: str, seed: int, power: int) -> None:
    layout = layout_of(name)
    initial, final = moved(layout, seed, power)
    exact = {
        t.name: deviation(initial[t.name], final[t.name])
        for t in layout.tensors
        if t.trainable
    }
    wanted: Any = {"units": report_by_unit(layout, exact)}

    for payload in PAYLOADS:
        values, scale = encode_report(initial, final, layout, payload)
        report, model = decode_report(values, scale, layout, payload, initial)

        expected = wanted.get(payload, exact)
        assert list(report) == list(expected)
        for key, array in report.items():
            # A root to one part in 2000, so its square to one in 1000.
            np.testing.assert_allclose(array, expected[key], rtol=1.1e-3)
        assert (model is not None) == (payload in WITH_MODEL)


def test_update_gives_the_explorers_model_back() -> None:
    layout = flat_layout()
    initial, final = moved(layout, 0)
    final["norm.num_batches_tracked"] = initial["norm.num_batches_tracked"] + 6

    values, scale = encode_report(initial, final, layout, "update")
    _, model = decode_report(values, scale, layout, "update", initial)

    assert model is not None
    for spec in layout.tensors:
        assert model[spec.name].dtype == np.dtype(spec.dtype)
        np.testing.assert_allclose(model[spec.name], final[spec.name], atol=1e-5)


def test_weights_are_reported_as_they_are() -> None:
    layout = flat_layout()
    initial, final = moved(layout, 0)

    values, scale = encode_report(initial, final, layout, "weights")
    check_report(values, scale, layout, "weights", initial)
    report, model = decode_report(values, scale, layout, "weights", initial)

    assert (values.dtype, scale) == (np.float32, 1.0)
    assert model is not None
    for spec in layout.tensors:
        np.testing.assert_array_equal(model[spec.name], final[spec.name])
        assert (spec.name in report) == spec.trainable
    huge = np.full_like(values, 1e30)
    for faulty in (values[:-1], values[None], values.astype(int), huge, huge * np.inf):
        with pytest.raises(WireError):
            check_report(faulty, scale, layout, "weights", initial)


@pytest.mark.parametrize("payload", IN_16_BITS)
def test_reports_that_do_not_fit_are_wire_errors(payload: Any) -> None:
    layout = flat_layout()
    initial, final = moved(layout, 0)
    values, scale = encode_report(initial, final, layout, payload)
    bad = values.copy()
    bad[0] = np.nan

    for faulty, its_scale in (
        (values[:-1], scale),
        (values.astype(np.float32), scale),
        (values[None], scale),
        (bad, scale),
        (values, None),
        (values, 0.0),
        (values, float("nan")),
        (values, 1e-300),
    ):
        with pytest.raises(WireError):
            check_report(faulty, its_scale, layout, payload, initial)


@pytest.mark.parametrize("payload", IN_16_BITS)
def test_report_whose_square_overflows_is_a_wire_error(payload: Any) -> None:
    layout = mlp_layout()
    initial = random_arrays(layout)
    values, _ = encode_report(initial, moved(layout, 0)[1], layout, payload)
    values[:] = 1

    with pytest.raises(WireError):
        check_report(values, 1e-20, layout, payload, initial)
