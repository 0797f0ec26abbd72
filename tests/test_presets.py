"""Presets are what their sources say."""

import pytest

from flwr_autoflip.core.errors import AutoFlipError
from flwr_autoflip.core.threshold import Absolute, Auto, Compression, MacShare, Quantile
from flwr_autoflip.policies import AutoFlipPolicy, Dense, L1Units, RandomUnits
from flwr_autoflip.presets import resolve_options, resolve_policy


def test_default_needs_no_number_from_the_user() -> None:
    options = resolve_options("default", {})

    assert resolve_policy("autoflip", options) == AutoFlipPolicy(Auto(0.7))
    assert options["exploration_fraction"] == "round"
    assert options["warm_start"]


def test_paper_is_algorithm_1_and_table_2() -> None:
    options = resolve_options("paper", {})

    assert resolve_policy("autoflip", options) == AutoFlipPolicy(
        Absolute(0.3),
        normalization="client",
        units="all",
        guidance_from="participants",
        keep_output=False,
    )
    assert options["exploration_epochs"] == 150
    assert options["exploration_fraction"] == 1.0
    assert options["exploration_payload"] == "deviation"
    assert options["untrained"] == "zero"
    assert not options["warm_start"]
    assert not options["rescale"]


def test_authors_code_masks_a_global_quantile_and_lets_zeros_regrow() -> None:
    options = resolve_options("authors-code", {})

    assert resolve_policy("autoflip", options) == AutoFlipPolicy(
        Quantile(0.3, "global"), units="none", keep_output=False
    )
    assert options["regrow"]
    assert options["warm_start"]


def test_changes_lie_over_the_preset() -> None:
    options = resolve_options("paper", {"threshold": "quantile:0.4"})

    policy = resolve_policy("autoflip", options)

    assert isinstance(policy, AutoFlipPolicy)
    assert policy.threshold == Quantile(0.4)
    assert policy.normalization == "client"


def test_policies_by_name() -> None:
    options = resolve_options("default", {"threshold": "macs:0.25"})
    counts = resolve_options("default", {"threshold": "conv1=8, fc1=4"})

    assert resolve_policy("random", options) == RandomUnits(MacShare(0.25))
    assert resolve_policy("l1", options) == L1Units(MacShare(0.25))
    assert resolve_policy("dense", options) == Dense()
    eights = resolve_options("default", {"threshold": "2x", "round_to": 8})
    assert resolve_policy("random", eights) == RandomUnits(Compression(2), round_to=8)
    assert resolve_policy("l1", eights) == L1Units(Compression(2), 8)
    assert resolve_policy("random", counts) == RandomUnits({"conv1": 8, "fc1": 4})
    own = RandomUnits(MacShare(0.1), seed=3)
    assert resolve_policy(own, options) is own


def test_autoflip_takes_no_counts() -> None:
    with pytest.raises(AutoFlipError, match="takes a threshold, not units a group"):
        resolve_policy("autoflip", resolve_options("default", {"threshold": "a=1"}))


def test_units_payload_cannot_choose_single_weights() -> None:
    with pytest.raises(AutoFlipError, match="cannot choose single"):
        resolve_options(
            "default",
            {
                "exploration_payload": "units",
                "warm_start": False,
                "single_weights": 0.3,
            },
        )
