"""Kept weights make up for lost inputs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    ZOO,
    layout_of,
    mlp_layout,
    random_arrays,
    random_plan,
)

from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.methods.rescale import rescale_fan_in


def test_kept_columns_grow_by_hand() -> None:
    plan = Plan(mlp_layout(), {"fc1": np.array([1])})
    arrays = {
        "fc1.weight": np.ones((4, 3), np.float32),
        "fc1.bias": np.ones(4, np.float32),
        "fc2.weight": np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]),
        "fc2.bias": np.ones(2, np.float32),
    }

    scaled = rescale_fan_in(arrays, plan)

    # fc2 keeps 1 of 4 inputs: its kept column grows by sqrt(4) = 2.
    np.testing.assert_array_equal(scaled["fc2.weight"], [[1, 4, 3, 4], [5, 12, 7, 8]])
    for name in ("fc1.weight", "fc1.bias", "fc2.bias"):
        np.testing.assert_array_equal(scaled[name], 1)
    assert scaled["fc2.weight"].dtype == np.float32
    assert arrays["fc2.weight"][0, 1] == 2  # the caller's are left alone


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_only_kept_weights_grow_by_the_root_of_lost_inputs_and_keep_their_type(
    name: str, seed: int
) -> None:
    layout = layout_of(name)
    arrays = random_arrays(layout)
    plan = random_plan(layout, seed)

    scaled = rescale_fan_in(arrays, plan)

    assert list(scaled) == list(arrays)
    for spec in layout.tensors:
        old, new = arrays[spec.name], scaled[spec.name]
        kept = plan.dense_mask(spec.name)
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new[~kept], old[~kept])
        axes = [axis for axis in spec.input_axes if not spec.normalized]
        small = plan.small_shape(spec.name)
        lost = np.prod([spec.shape[axis] / small[axis] for axis in axes])
        np.testing.assert_allclose(new[kept], old[kept] * np.sqrt(lost), rtol=1e-5)
