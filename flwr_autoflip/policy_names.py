"""The policy that options name and mean."""

from collections.abc import Mapping
from typing import cast, get_args

from .core.errors import AutoFlipError
from .core.robust import parse_combination
from .core.threshold import Compression, MacShare, Mass, Threshold, parse_threshold
from .policies import (
    AutoFlipPolicy,
    Dense,
    EflPrune,
    L1Units,
    Policy,
    PruneFl,
    RandomUnits,
    Structured,
)
from .policies.base import UnitCounts, parse_units
from .policies.eflprune import Criterion
from .presets import MAC_SHARES, Options

POLICIES = (
    *("autoflip", "random", "l1", "dense", "prunefl"),
    *(f"eflprune-{criterion}" for criterion in get_args(Criterion)),
    *("structured", "structured-restart"),
)
"""Names of policies; those after "dense" are other papers' methods."""


def resolve_policy(options: Options) -> Policy:
    """Give the policy that the options name and mean.

    Parameters
    ----------
    options : Options
        Complete. A policy object is taken as it is. With ``threshold="auto"``
        "prunefl" and "structured" go by their own rules, others by ``priority``.
        "structured-restart" throws weights away when units go.

    Returns
    -------
    Policy

    Raises
    ------
    AutoFlipError
        On an unknown name, or a threshold that the policy cannot use.
    """
    policy = options["policy"]
    if not isinstance(policy, str):
        return policy
    if policy not in POLICIES:
        raise AutoFlipError(
            f"policy must be {', '.join(map(repr, POLICIES))} or a Policy object, got "
            f"{policy!r}."
        )
    kind, _, detail = policy.partition("-")
    own = None if options["threshold"] == "auto" else parse_units(options["threshold"])
    threshold = own or MacShare(MAC_SHARES[options["priority"]])
    if policy in ("random", "eflprune-random") and isinstance(threshold, Mass):
        raise AutoFlipError(
            f"policy={policy!r} has no scores with a mass; give a target such as "
            "threshold='2x', 'macs:0.25' or {'conv1': 8, ...}."
        )
    match kind:
        case "dense":
            return Dense()
        case "random":
            return RandomUnits(threshold, round_to=options["round_to"])
        case "l1":
            return L1Units(threshold, options["round_to"])
        case "prunefl":
            return _prunefl(own, options)
        case "eflprune":
            criterion = cast(Criterion, detail)
            return EflPrune(criterion, threshold, round_to=options["round_to"])
        case "structured":
            return Structured(threshold=own, restart=detail == "restart")
        case _:
            return _autoflip(threshold, options)


def _prunefl(threshold: Threshold | UnitCounts | None, options: Options) -> PruneFl:
    if not isinstance(threshold, Compression | None):
        raise AutoFlipError(
            "policy='prunefl' takes threshold='auto' (its own density) or a number of "
            f"parameters such as '2x', got {threshold!r}."
        )
    if options["exploration_payload"] == "units":
        raise AutoFlipError(
            "policy='prunefl' reads single weights from its explorer; use "
            "exploration_payload='update' or 'deviation'."
        )
    return PruneFl(threshold)


def _autoflip(threshold: Threshold | UnitCounts, options: Options) -> AutoFlipPolicy:
    if isinstance(threshold, Mapping):
        raise AutoFlipError("policy='autoflip' takes a threshold, not units a group.")
    single = options["single_weights"]
    return AutoFlipPolicy(
        threshold,
        options["normalization"],
        options["units"],
        None if single is None else parse_threshold(single),
        options["guidance_from"],
        options["keep_output"],
        options["round_to"],
        options["client_scale"],
        parse_combination(options["combination"]),
    )


_OF_EXPLORERS = (
    *("normalization", "client_scale", "combination", "guidance_from", "warm_start"),
    *("exploration_fraction", "exploration_epochs", "exploration_payload"),
)


def check_used(policy: Policy, changes: Options) -> None:
    """Raise ``AutoFlipError`` if a user's options wait for explorers in vain."""
    if unused := [n for n in changes if n in _OF_EXPLORERS and not policy.explores]:
        raise AutoFlipError(
            f"{unused[0]} is about explorers, and {type(policy).__name__} needs none; "
            "leave it out, or use preset='guided'."
        )
