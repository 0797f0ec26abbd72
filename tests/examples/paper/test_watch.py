"""What is plotted of a run: numbers computed by hand."""

import numpy as np
import pytest
from flwr.app import ArrayRecord

from examples.paper.watch import BINS, guidance_histogram, update_variance
from flwr_autoflip.wire import to_arrayrecord


def record(weight: list[list[float]], bias: list[float]) -> ArrayRecord:
    return to_arrayrecord(
        {
            "weight": np.asfortranarray(weight, dtype=np.float32),
            "bias": np.array(bias, dtype=np.float32),
            "running_mean": np.array([bias[0] * 100], dtype=np.float32),
        }
    )


def test_variance_is_the_mean_squared_distance_from_the_mean() -> None:
    # Weights 1, 3 around 2 and 2, 8 around 5; biases 0, 4 around 2; the rest agrees.
    nodes = [record([[1, 7], [2, 7]], [0, 1]), record([[3, 7], [8, 7]], [4, 1])]
    by_hand = ((1 + 1) + (9 + 9) + (4 + 4)) / 2

    assert update_variance(nodes, ["weight", "bias"]) == by_hand
    assert update_variance(nodes, ["bias"]) == 4
    assert update_variance(nodes[:1], ["weight", "bias"]) == 0
    assert update_variance([], []) == 0


def test_guidance_is_counted_in_equal_bins() -> None:
    guidance = {"a": np.array([[0.0, 0.5 / BINS]]), "b": np.array([1.0, 0.5])}

    counts = guidance_histogram(guidance)

    assert len(counts) == BINS
    assert sum(counts) == 4
    assert (counts[0], counts[BINS // 2], counts[-1]) == (2, 1, 1)


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_variance_does_not_depend_on_where_everybody_started(shift: float) -> None:
    one, two = (np.array([1.0, 2.0]) + shift, np.array([3.0, 6.0]) + shift)
    nodes = [to_arrayrecord({"w": values}) for values in (one, two)]

    assert update_variance(nodes, ["w"]) == (2 + 8) / 2
