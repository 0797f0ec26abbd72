"""Presets are what their sources say."""

import pytest

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.methods import AutoFlipPolicy, L1Units, RandomUnits, Structured
from flwr_autoflip.methods.names import resolve_policy
from flwr_autoflip.methods.threshold import Absolute, MacShare, Quantile
from flwr_autoflip.server.options import MAC_SHARES, Priority, resolve_options


def test_default_needs_no_number_from_the_user() -> None:
    options = resolve_options("default", {})

    assert resolve_policy(options) == L1Units(MacShare(0.25))
    assert options["value_dtype"] == "int8"


def test_guided_is_the_default_with_an_exploration() -> None:
    options = resolve_options("guided", {})

    assert resolve_policy(options) == AutoFlipPolicy(MacShare(0.25))
    assert options["exploration_fraction"] == "round"
    assert options["warm_start"]
    assert options == {**resolve_options("default", {}), "policy": "autoflip"}


@pytest.mark.parametrize(("priority", "share"), MAC_SHARES.items())
def test_priority_says_how_much_of_the_macs_stays(
    priority: Priority, share: float
) -> None:
    options = resolve_options("default", {"priority": priority})

    assert resolve_policy(options) == L1Units(MacShare(share))
    for policy, expected in (
        ("random", RandomUnits(MacShare(share))),
        ("structured", Structured(restart=False)),  # goes by its own rules
    ):
        assert resolve_policy({**options, "policy": policy}) == expected


def test_priority_beside_a_threshold_is_refused() -> None:
    with pytest.raises(AutoFlipError, match="leave one of them out"):
        resolve_options("default", {"priority": "compute", "threshold": "2x"})
    with pytest.raises(AutoFlipError, match="leave one of them out"):
        resolve_options("paper", {"priority": "compute"})
    with pytest.raises(AutoFlipError, match="priority must be one of"):
        resolve_options("default", {"priority": "speed"})  # type: ignore[typeddict-item]


def test_paper_is_algorithm_1_and_table_2() -> None:
    options = resolve_options("paper", {})

    assert resolve_policy(options) == AutoFlipPolicy(
        Absolute(0.3),
        normalization="client",
        units="all",
        guidance_from="participants",
        keep_output=False,
        client_scale="raw",
    )
    assert options["exploration_epochs"] == 150
    assert options["exploration_fraction"] == 1.0
    assert options["exploration_payload"] == "deviation"
    assert options["untrained"] == "zero"
    assert not options["warm_start"]
    assert not options["rescale"]


def test_authors_code_masks_a_global_quantile_and_lets_zeros_regrow() -> None:
    options = resolve_options("authors-code", {})

    assert resolve_policy(options) == AutoFlipPolicy(
        Quantile(0.3, "global"), units="none", keep_output=False, client_scale="raw"
    )
    assert options["regrow"]
    assert options["warm_start"]


def test_changes_lie_over_the_preset() -> None:
    options = resolve_options("paper", {"threshold": "quantile:0.4"})

    policy = resolve_policy(options)

    assert isinstance(policy, AutoFlipPolicy)
    assert policy.threshold == Quantile(0.4)
    assert policy.normalization == "client"


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
