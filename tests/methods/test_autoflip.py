"""AutoFLIP's choices by hand, option by option."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import layout_of, mlp_layout, random_arrays
from torch import nn

from flwr_autoflip.errors import AutoFlipError, AutoFlipWarning
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.methods import AutoFlipPolicy
from flwr_autoflip.methods.guidance import Report, report_by_unit
from flwr_autoflip.methods.threshold import (
    Absolute,
    Compression,
    MacShare,
    Mass,
    Quantile,
    Threshold,
)

# Deviations of Linear 3 -> 4 -> 2, and guidance by "layer" (min-max a tensor):
#   fc1.weight rows  0 8 4 2        -> 0  1  .5  .25
#   fc1.bias         0 10 0 5       -> 0  1  0   .5
#   fc2.weight       0 1 2 3        -> 0 .125 .25 .375
#                    4 5 6 8           .5 .625 .75 1
#   fc2.bias         0 1            -> 0  1
# Scores of neurons, means of 3 weights and a bias:
#   0, 1, (1.5 + 0) / 4 = .375, (.75 + .5) / 4 = .3125
REPORT = {
    "fc1.weight": np.repeat(np.float32([[0], [8], [4], [2]]), 3, axis=1),
    "fc1.bias": np.float32([0, 10, 0, 5]),
    "fc2.weight": np.float32([[0, 1, 2, 3], [4, 5, 6, 8]]),
    "fc2.bias": np.float32([0, 1]),
}


def client_reports() -> list[Report]:
    """Give three explorers' deviations; guidance by "client" stands below.

    Neuron 0: (0, 1, 5) everywhere -> .4. Neuron 1: (0, 5, 5) -> 2/3. Neuron 2: .4 but
    for one weight, (0, 3, 5) -> .5333. Neuron 3: nobody moved, 0/0 = 0.
    fc2: (0, 1, 5) everywhere -> .4.
    """
    reports = []
    for usual, strong, special in ((0, 0, 0), (1, 5, 3), (5, 5, 5)):
        weight = np.full((4, 3), usual, np.float32)
        weight[1] = strong
        weight[2, 1] = special
        weight[3] = 0
        reports.append(
            {
                "fc1.weight": weight,
                "fc1.bias": np.float32([usual, strong, usual, 0]),
                "fc2.weight": np.full((2, 4), usual, np.float32),
                "fc2.bias": np.full(2, usual, np.float32),
            }
        )
    return reports


def plan_of(policy: AutoFlipPolicy, *reports: Report) -> Plan:
    """Make the policy's plan for the small network."""
    layout = mlp_layout()
    return policy(1, layout, random_arrays(layout), reports or [REPORT, REPORT])


# --- units="score" ---


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [
        (Absolute(0.35), [1, 2]),
        (Absolute(0.375), [1, 2]),  # equal stays
        (Absolute(0.38), [1]),
        (Quantile(0.25), [1, 2, 3]),  # one of four goes
        (Quantile(0.5, "global"), [1, 2]),  # above the median (.3125 + .375) / 2
        (Mass(0.7), [1, 2]),  # sum 1.6875: 1 is .59, 1.375 is .81
        (Mass(0.55), [1]),
        # n neurons have 3n + n + 2n + 2 parameters of 26: 8, 14, 20, 26.
        (Compression(2), [1]),
        (Compression(26 / 14), [1, 2]),
        # n neurons cost 3n + 2n of 20 MACs.
        (MacShare(0.5), [1, 2]),
        (MacShare(0.49), [1]),
    ],
    ids=str,
)
def test_units_by_score(threshold: Threshold, kept: list[int]) -> None:
    plan = plan_of(AutoFlipPolicy(threshold))

    np.testing.assert_array_equal(plan.keep["fc1"], kept)
    assert plan.mask == {}


def test_best_unit_stays_when_none_reaches_the_threshold() -> None:
    report = REPORT | {"fc1.bias": np.float32([10, 0, 0, 5])}

    plan = plan_of(AutoFlipPolicy(Absolute(0.9)), report, report)

    # Scores 1/4, 3/4, 1.5/4, 1.25/4: neuron 1 is the best of them.
    np.testing.assert_array_equal(plan.keep["fc1"], [1])


def test_unit_scores_by_client_normalization() -> None:
    policy = AutoFlipPolicy(Absolute(0.42), normalization="client", client_scale="raw")

    plan = plan_of(policy, *client_reports())

    # Scores .4, 2/3, (3 * .4 + .5333) / 4 = .4333, 0
    np.testing.assert_array_equal(plan.keep["fc1"], [1, 2])


# --- units="all" ---


def test_unit_goes_only_when_all_its_own_parameters_are_marked() -> None:
    plan = plan_of(AutoFlipPolicy(Absolute(0.5), units="all"))

    # Neuron 0: all 0. Neuron 2: weights of .5 stay, its bias of 0 goes. Neuron 3:
    # weights of .25 go, but its bias of .5 stays, and with it the neuron.
    np.testing.assert_array_equal(plan.keep["fc1"], [1, 2, 3])
    np.testing.assert_array_equal(
        plan.small_mask["fc1.weight"], np.repeat([[True], [True], [False]], 3, axis=1)
    )
    np.testing.assert_array_equal(plan.small_mask["fc1.bias"], [True, False, True])


def test_paper_rule_by_hand() -> None:
    policy = AutoFlipPolicy(
        Absolute(0.45), normalization="client", units="all", client_scale="raw"
    )

    plan = plan_of(policy, *client_reports())

    # Neuron 0 (.4) and neuron 3 (0) go; of neuron 2 one weight (.5333) stays.
    np.testing.assert_array_equal(plan.keep["fc1"], [1, 2])
    np.testing.assert_array_equal(
        plan.small_mask["fc1.weight"], [[True, True, True], [False, True, False]]
    )
    np.testing.assert_array_equal(plan.small_mask["fc1.bias"], [True, False])


def test_best_unit_stays_when_all_are_marked() -> None:
    policy = AutoFlipPolicy(
        Absolute(0.9), normalization="client", units="all", client_scale="raw"
    )

    plan = plan_of(policy, *client_reports())

    np.testing.assert_array_equal(plan.keep["fc1"], [1])


# --- units="none" ---


def test_single_weights_only_by_hand() -> None:
    plan = plan_of(AutoFlipPolicy(Absolute(0.5), units="none"))

    np.testing.assert_array_equal(plan.keep["fc1"], [0, 1, 2, 3])
    rows = [[False], [True], [True], [False]]
    np.testing.assert_array_equal(plan.mask["fc1.weight"], np.repeat(rows, 3, axis=1))
    np.testing.assert_array_equal(plan.mask["fc1.bias"], [False, True, False, True])


def test_global_quantile_of_single_weights_by_hand() -> None:
    policy = AutoFlipPolicy(Quantile(0.3, "global"), units="none")

    plan = plan_of(policy)

    # fc1's 16 values sorted: 0 x 5, .25 x 3, .5 x 4, 1 x 4. Place .3 * 15 = 4.5 lies
    # between 0 and .25: .125, so the five zeros go.
    assert plan.num_parameters == 26 - 5
    np.testing.assert_array_equal(plan.mask["fc1.bias"], [False, True, False, True])


def test_quantile_that_falls_on_zeros_drops_all_of_them() -> None:
    policy = AutoFlipPolicy(Quantile(0.1, "global"), units="none")

    plan = plan_of(policy)

    # Place 1.5 is a 0: what is not strictly above goes, five of sixteen, not two.
    assert plan.num_parameters == 26 - 5


# --- Single weights inside what stays ---


def test_single_weights_inside_kept_units_by_hand() -> None:
    policy = AutoFlipPolicy(MacShare(0.5), single_weights=Absolute(0.75))

    plan = plan_of(policy)

    # Neurons 1 (all 1) and 2 (weights .5, bias 0) stay; all of 2's own weights go.
    np.testing.assert_array_equal(plan.keep["fc1"], [1, 2])
    np.testing.assert_array_equal(
        plan.small_mask["fc1.weight"], [[True, True, True], [False, False, False]]
    )
    np.testing.assert_array_equal(plan.small_mask["fc1.bias"], [True, False])


def test_compression_of_single_weights_counts_what_units_saved() -> None:
    policy = AutoFlipPolicy(MacShare(0.5), single_weights=Compression(2.5))

    plan = plan_of(policy)

    # At most 26 / 2.5 = 10.4. fc2 (6) stays; fc1 has 6 weights and 2 biases left.
    # Shares 1/6, 2/6, 3/6, 4/6 keep 1 + 1, 2 + 1, 3 + 1, 4 + 1: 8, 9, 10, 11.
    assert plan.num_parameters == 10
    np.testing.assert_array_equal(
        plan.small_mask["fc1.weight"], [[True, True, True], [False, False, False]]
    )
    np.testing.assert_array_equal(plan.small_mask["fc1.bias"], [True, False])


def test_macs_cannot_choose_single_weights() -> None:
    with pytest.raises(AutoFlipError, match=r"single_weights: .* save no MACs"):
        AutoFlipPolicy(Quantile(0.25), single_weights=MacShare(0.5))
    with pytest.raises(AutoFlipError, match=r"units='none': .* save no MACs"):
        AutoFlipPolicy(MacShare(0.5), units="none")


# --- The output layer ---


@pytest.mark.parametrize(
    "policy",
    [
        AutoFlipPolicy(Absolute(0.9), units="none"),
        AutoFlipPolicy(Absolute(0.9), units="all"),
        AutoFlipPolicy(Quantile(0.5), single_weights=Absolute(0.9)),
    ],
    ids=lambda policy: policy.units,
)
def test_output_layer_is_never_pruned_by_default(policy: AutoFlipPolicy) -> None:
    plan = plan_of(policy)

    assert "fc1.weight" in plan.mask
    assert not {"fc2.weight", "fc2.bias"} & set(plan.mask)


@pytest.mark.parametrize("units", ["none", "all"])
def test_output_layer_is_maskable_on_request(units: Any) -> None:
    plan = plan_of(AutoFlipPolicy(Absolute(0.5), units=units, keep_output=False))

    np.testing.assert_array_equal(
        plan.mask["fc2.weight"], [[False] * 4, [True, True, True, True]]
    )
    np.testing.assert_array_equal(plan.mask["fc2.bias"], [False, True])


def test_output_layer_with_single_weights_inside_units() -> None:
    policy = AutoFlipPolicy(
        MacShare(0.5), single_weights=Absolute(0.6), keep_output=False
    )

    plan = plan_of(policy)

    # Columns 1 and 2 of fc2: .125 .25 over .625 .75.
    np.testing.assert_array_equal(
        plan.small_mask["fc2.weight"], [[False, False], [True, True]]
    )


@pytest.mark.parametrize(
    ("name", "prefix"), [("raw_parameters", ""), ("raw_block", "block.")]
)
def test_output_among_bare_parameters_is_never_pruned_by_default(
    name: str, prefix: str
) -> None:
    layout = layout_of(name)
    report = {
        f"{prefix}w1": np.arange(18, dtype=np.float32).reshape(3, 6),
        f"{prefix}w2": np.eye(6, 2, dtype=np.float32),
    }

    plan = AutoFlipPolicy(Absolute(0.5), units="none")(1, layout, {}, [report] * 2)

    assert set(plan.mask) == {f"{prefix}w1"}


# --- Sums by unit instead of whole reports ---


def bias_free() -> Layout:
    """Trace a network whose units own one row of one tensor each."""
    model = nn.Sequential(
        nn.Linear(3, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 5, bias=False),
        nn.ReLU(),
        nn.Linear(5, 2, bias=False),
    )
    return trace(model, torch.zeros(1, 3))


BIAS_FREE = bias_free()


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    explorers=st.integers(2, 4),
    threshold=st.sampled_from(
        [Quantile(0.4), Compression(2), MacShare(0.3), Quantile(0.5, "layer")]
    ),
)
def test_sums_by_unit_choose_what_whole_reports_choose(
    seed: int, explorers: int, threshold: Threshold
) -> None:
    generator = np.random.default_rng(seed)
    whole = [
        {t.name: generator.random(t.shape, np.float32) for t in BIAS_FREE.tensors}
        for _ in range(explorers)
    ]
    short = [report_by_unit(BIAS_FREE, report) for report in whole]
    policy = AutoFlipPolicy(threshold)

    one, other = (policy(1, BIAS_FREE, {}, reports) for reports in (whole, short))

    for name, kept in one.keep.items():
        np.testing.assert_array_equal(kept, other.keep[name])


def test_sums_by_unit_by_hand() -> None:
    reports = [{"fc1": np.float32([4, 0, 2, 3])}, {"fc1": np.float32([4, 0, 4, 1])}]

    plan = plan_of(AutoFlipPolicy(Absolute(0.6)), *reports)

    # Means 4 0 3 2 -> 1 0 .75 .5
    np.testing.assert_array_equal(plan.keep["fc1"], [0, 2])


@pytest.mark.parametrize(
    "policy",
    [
        AutoFlipPolicy(Absolute(0.5), units="all"),
        AutoFlipPolicy(Absolute(0.5), units="none"),
        AutoFlipPolicy(Absolute(0.5), single_weights=Absolute(0.5)),
    ],
    ids=["all", "none", "single weights"],
)
def test_sums_by_unit_cannot_choose_single_weights(policy: AutoFlipPolicy) -> None:
    reports = [{"fc1": np.float32([4, 0, 2, 3])}] * 2

    with pytest.raises(AutoFlipError, match="summed it per unit"):
        plan_of(policy, *reports)


# --- Warnings and refusals ---


def test_one_explorer_warns() -> None:
    with pytest.warns(AutoFlipWarning, match="one explorer only"):
        plan = plan_of(AutoFlipPolicy(Absolute(0.35)), REPORT)

    np.testing.assert_array_equal(plan.keep["fc1"], [1, 2])


@pytest.mark.parametrize(("value", "count"), [(0.3, 3), (0.2, 5), (0.5, 2)])
def test_threshold_of_at_most_1_k_by_client_warns(value: float, count: int) -> None:
    policy = AutoFlipPolicy(Absolute(value), normalization="client")

    with pytest.warns(AutoFlipWarning, match=f"1/K = 1/{count}"):
        policy.check_explorers(count)


@pytest.mark.parametrize(
    ("policy", "count"),
    [
        (AutoFlipPolicy(Absolute(0.3), normalization="client"), 4),
        (AutoFlipPolicy(Absolute(0.21), normalization="client"), 5),
        (AutoFlipPolicy(Absolute(0.3), normalization="layer"), 2),
        (AutoFlipPolicy(Quantile(0.1), normalization="client"), 2),
    ],
)
def test_enough_explorers_do_not_warn(policy: AutoFlipPolicy, count: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.check_explorers(count)


def test_client_normalization_of_one_explorer_is_an_error() -> None:
    policy = AutoFlipPolicy(Absolute(0.3), normalization="client")

    with pytest.raises(AutoFlipError, match="compares explorers, got 1"):
        plan_of(policy, REPORT)


@pytest.mark.parametrize("normalization", ["client", "layer"])
def test_no_explorer_is_an_error(normalization: Any) -> None:
    policy = AutoFlipPolicy(Quantile(0.3), normalization=normalization)
    layout = mlp_layout()

    with pytest.raises(AutoFlipError):
        policy(1, layout, random_arrays(layout), [])


@pytest.mark.parametrize("units", ["score", "all", "none"])
def test_nothing_pruned_warns(units: Any) -> None:
    with pytest.warns(AutoFlipWarning, match="prunes nothing"):
        plan = plan_of(AutoFlipPolicy(Absolute(0.0), units=units))

    assert plan.num_parameters == 26


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": "both"}, "units must be .* got 'both'"),
        ({"client_scale": "layer"}, "client_scale must be .* got 'layer'"),
        ({"normalization": "tensor"}, "normalization must be .* got 'tensor'"),
        ({"guidance_from": "all"}, "guidance_from must be .* got 'all'"),
        ({"units": "all", "single_weights": Absolute(0.5)}, "leave single_weights out"),
        ({"units": "none", "single_weights": Absolute(0.5)}, "units='score'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoFlipError, match=message):
        AutoFlipPolicy(Absolute(0.3), **options)


# --- A policy is a pure function ---


def test_policy_explores_and_says_whose_guidance_it_takes() -> None:
    threshold = Absolute(0.3)

    assert AutoFlipPolicy(threshold).explores
    assert not AutoFlipPolicy(threshold).per_round
    assert AutoFlipPolicy(threshold, guidance_from="participants").per_round


def test_round_and_weights_do_not_matter_and_nothing_is_changed() -> None:
    layout = mlp_layout()
    reports = [{name: array.copy() for name, array in REPORT.items()}] * 2
    weights = random_arrays(layout, 1)
    before = {name: array.copy() for name, array in weights.items()}
    policy = AutoFlipPolicy(Quantile(0.5), single_weights=Quantile(0.2))

    one = policy(1, layout, weights, reports)
    other = policy(9, layout, random_arrays(layout, 2), reports)

    np.testing.assert_array_equal(one.keep["fc1"], other.keep["fc1"])
    for name, mask in one.mask.items():
        np.testing.assert_array_equal(mask, other.mask[name])
    for name, array in REPORT.items():
        np.testing.assert_array_equal(reports[0][name], array)
        np.testing.assert_array_equal(weights[name], before[name])
