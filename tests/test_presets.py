"""Presets are what their sources say."""

import pytest

from flwr_autoflip.core.errors import AutoFlipError
from flwr_autoflip.core.threshold import Absolute, Auto, Compression, MacShare, Quantile
from flwr_autoflip.policies import (
    AutoFlipPolicy,
    Dense,
    EflPrune,
    L1Units,
    PruneFl,
    RandomUnits,
    Structured,
)
from flwr_autoflip.presets import POLICIES, Options, resolve_options, resolve_policy


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

    assert resolve_policy("autoflip", options) == AutoFlipPolicy(
        Quantile(0.3, "global"), units="none", keep_output=False, client_scale="raw"
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


def named(policy: str, **changes: object) -> object:
    options = resolve_options("default", Options(**changes))  # type: ignore[typeddict-item]
    return resolve_policy(policy, options)


def test_baselines_by_name() -> None:
    assert named("prunefl") == PruneFl()
    assert named("prunefl", threshold="3x") == PruneFl(Compression(3))
    assert named("structured") == Structured(restart=False)
    assert named("structured-restart") == Structured(restart=True)
    assert named("structured", threshold="macs:0.5") == Structured(
        threshold=MacShare(0.5), restart=False
    )
    assert named("eflprune-bn", threshold="2x", round_to=8) == EflPrune(
        "bn", Compression(2), round_to=8
    )
    for criterion in ("random", "l1", "l2", "similarity", "bn", "magnitude"):
        assert named(f"eflprune-{criterion}", threshold="2x") == EflPrune(
            criterion, Compression(2)
        )


def test_every_name_is_a_policy_and_no_other_is() -> None:
    for name in POLICIES:
        assert callable(named(name, threshold="2x"))
    for name in (
        "eflprune",
        "eflprune-",
        "eflprune-l3",
        "structured-fresh",
        "prunefl-1",
    ):
        with pytest.raises(AutoFlipError, match="policy must be 'autoflip'"):
            named(name, threshold="2x")


@pytest.mark.parametrize(
    ("policy", "changes", "message"),
    [
        ("prunefl", {"threshold": "macs:0.5"}, "takes threshold='auto'"),
        ("prunefl", {"threshold": {"a": 1}}, "takes threshold='auto'"),
        (
            "prunefl",
            {"exploration_payload": "units", "warm_start": False},
            "reads single weights",
        ),
        ("structured", {"threshold": 0.3}, "takes its own limits"),
        ("eflprune-random", {}, "give a target"),
        ("eflprune-magnitude", {"threshold": {"a": 1}}, "prunes single weights"),
    ],
)
def test_thresholds_that_a_baseline_cannot_use(
    policy: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(AutoFlipError, match=message):
        named(policy, **changes)
