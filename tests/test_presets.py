"""Presets are what their sources say."""

import pytest

from flwr_autoflip.core.errors import AutoFlipError
from flwr_autoflip.core.threshold import Absolute, Compression, MacShare, Quantile
from flwr_autoflip.policies import (
    AutoFlipPolicy,
    Dense,
    EflPrune,
    L1Units,
    Policy,
    PruneFl,
    RandomUnits,
    Structured,
)
from flwr_autoflip.presets import (
    MAC_SHARES,
    POLICIES,
    Options,
    Priority,
    resolve_options,
    resolve_policy,
)


def named(policy: Policy | str, options: Options) -> Policy:
    return resolve_policy({**options, "policy": policy})


def changed(policy: str, **changes: object) -> Policy:
    return named(policy, resolve_options("default", Options(**changes)))  # type: ignore[typeddict-item]


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
    assert changed("random", priority=priority) == RandomUnits(MacShare(share))
    assert changed("structured", priority=priority) == Structured(restart=False)


def test_priority_beside_a_threshold_is_refused() -> None:
    with pytest.raises(AutoFlipError, match="leave one of them out"):
        resolve_options("default", {"priority": "compute", "threshold": "2x"})
    with pytest.raises(AutoFlipError, match="leave one of them out"):
        resolve_options("paper", {"priority": "compute"})
    with pytest.raises(AutoFlipError, match="priority must be one of"):
        resolve_options("default", {"priority": "speed"})  # type: ignore[typeddict-item]


def test_paper_is_algorithm_1_and_table_2() -> None:
    options = resolve_options("paper", {})

    assert named("autoflip", options) == AutoFlipPolicy(
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

    assert named("autoflip", options) == AutoFlipPolicy(
        Quantile(0.3, "global"), units="none", keep_output=False, client_scale="raw"
    )
    assert options["regrow"]
    assert options["warm_start"]


def test_changes_lie_over_the_preset() -> None:
    options = resolve_options("paper", {"threshold": "quantile:0.4"})

    policy = named("autoflip", options)

    assert isinstance(policy, AutoFlipPolicy)
    assert policy.threshold == Quantile(0.4)
    assert policy.normalization == "client"


def test_policies_by_name() -> None:
    options = resolve_options("default", {"threshold": "macs:0.25"})
    counts = resolve_options("default", {"threshold": "conv1=8, fc1=4"})

    assert named("random", options) == RandomUnits(MacShare(0.25))
    assert named("l1", options) == L1Units(MacShare(0.25))
    assert named("dense", options) == Dense()
    eights = resolve_options("default", {"threshold": "2x", "round_to": 8})
    assert named("random", eights) == RandomUnits(Compression(2), round_to=8)
    assert named("l1", eights) == L1Units(Compression(2), 8)
    assert named("random", counts) == RandomUnits({"conv1": 8, "fc1": 4})
    own = RandomUnits(MacShare(0.1), seed=3)
    assert named(own, options) is own


def test_autoflip_takes_no_counts() -> None:
    with pytest.raises(AutoFlipError, match="takes a threshold, not units a group"):
        changed("autoflip", threshold="a=1")


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


def test_baselines_by_name() -> None:
    assert changed("prunefl") == PruneFl()
    assert changed("prunefl", threshold="3x") == PruneFl(Compression(3))
    assert changed("structured") == Structured(restart=False)
    assert changed("structured-restart") == Structured(restart=True)
    assert changed("structured", threshold="macs:0.5") == Structured(
        threshold=MacShare(0.5), restart=False
    )
    assert changed("eflprune-bn", threshold="2x", round_to=8) == EflPrune(
        "bn", Compression(2), round_to=8
    )
    for criterion in ("random", "l1", "l2", "similarity", "bn", "magnitude"):
        assert changed(f"eflprune-{criterion}", threshold="2x") == EflPrune(
            criterion, Compression(2)
        )


def test_every_name_is_a_policy_and_no_other_is() -> None:
    for name in POLICIES:
        assert callable(changed(name, threshold="2x"))
    for name in (
        "eflprune",
        "eflprune-",
        "eflprune-l3",
        "structured-fresh",
        "prunefl-1",
    ):
        with pytest.raises(AutoFlipError, match="policy must be 'autoflip'"):
            changed(name, threshold="2x")


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
        ("eflprune-random", {"threshold": "mass:0.7"}, "give a target"),
        ("eflprune-magnitude", {"threshold": {"a": 1}}, "prunes single weights"),
    ],
)
def test_thresholds_that_a_baseline_cannot_use(
    policy: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(AutoFlipError, match=message):
        changed(policy, **changes)
