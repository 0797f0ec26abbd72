"""Random units: reproducible, even-handed, of the asked-for number."""

import numpy as np
import pytest
from models import layout_of, mlp_layout, random_arrays

from flwr_autoflip.methods import RandomUnits
from flwr_autoflip.methods.threshold import Compression, MacShare


def test_same_seed_gives_the_same_plan_in_every_round() -> None:
    layout = layout_of("conv_flat")

    one = RandomUnits(MacShare(0.5), seed=3)(1, layout, random_arrays(layout, 1), [])
    other = RandomUnits(MacShare(0.5), seed=3)(7, layout, random_arrays(layout, 2), [])

    for name, kept in one.keep.items():
        np.testing.assert_array_equal(kept, other.keep[name])


def test_other_seeds_give_other_plans() -> None:
    layout = layout_of("conv_flat")

    counts = {"conv1": 2, "conv2": 3, "fc1": 4}
    plans = [RandomUnits(counts, seed)(1, layout, {}, []) for seed in range(20)]

    assert len({tuple(plan.alive) for plan in plans}) > 15


def test_counts_are_obeyed() -> None:
    layout = layout_of("conv_flat")

    plan = RandomUnits({"conv1": 1, "conv2": 5, "fc1": 8})(1, layout, {}, [])

    assert {n: len(k) for n, k in plan.keep.items()} == {
        "conv1": 1,
        "conv2": 5,
        "fc1": 8,
    }
    assert plan.mask == {}


def test_every_unit_has_the_same_chance() -> None:
    layout = mlp_layout()
    times = np.zeros(4)

    for seed in range(400):
        times[RandomUnits({"fc1": 1}, seed)(1, layout, {}, []).keep["fc1"]] += 1

    # 100 each; the standard deviation is sqrt(400 * 1/4 * 3/4) = 8.7.
    assert times.min() > 100 - 5 * 8.7
    assert times.max() < 100 + 5 * 8.7


@pytest.mark.parametrize("factor", [1.5, 2, 4])
def test_targets_are_met(factor: float) -> None:
    layout = layout_of("conv_flat")

    compressed = RandomUnits(Compression(factor))(1, layout, {}, [])
    cheaper = RandomUnits(MacShare(1 / factor))(1, layout, {}, [])

    assert compressed.num_parameters <= layout.num_parameters / factor
    assert cheaper.macs <= 5976 / factor  # by hand in test_cost.py


def test_random_units_need_no_explorers() -> None:
    policy = RandomUnits(Compression(2))

    assert not policy.explores
    assert not policy.per_round
