"""Names of policies, and what they cannot be given."""

import pytest

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.methods import (
    Dense,
    EflPrune,
    L1Units,
    Policy,
    PruneFl,
    RandomUnits,
    Structured,
)
from flwr_autoflip.methods.names import POLICIES, resolve_policy
from flwr_autoflip.methods.threshold import Compression, MacShare
from flwr_autoflip.server.options import Options, resolve_options


def named(policy: Policy | str, options: Options) -> Policy:
    return resolve_policy({**options, "policy": policy})


def changed(policy: str, **changes: object) -> Policy:
    return named(policy, resolve_options("default", Options(**changes)))  # type: ignore[typeddict-item]


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
