"""The policy that options name and mean."""

from collections.abc import Mapping
from typing import cast, get_args

from ..errors import AutoFlipError
from ..server.options import MAC_SHARES, Options
from . import (
    AutoFlipPolicy,
    Dense,
    EflPrune,
    L1Units,
    Policy,
    PruneFl,
    RandomUnits,
    Structured,
)
from .baselines.eflprune import Criterion
from .policy import UnitCounts, parse_units
from .robust import parse_combination
from .threshold import Compression, MacShare, Mass, Threshold, parse_threshold

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


_OF_NAMES = (
    *("threshold", "priority", "normalization", "combination", "units"),
    *("single_weights", "guidance_from", "keep_output"),
)
"""What a policy is made with that is given by its name."""
_OF_GUIDANCE = (
    *("normalization", "combination", "units", "single_weights", "guidance_from"),
    "keep_output",
)
_OF_EXPLORERS = (
    *("normalization", "client_scale", "combination", "guidance_from", "warm_start"),
    *("exploration_fraction", "exploration_epochs", "exploration_payload"),
)


def check_used(policy: Policy, options: Options, changes: Options) -> None:
    """Raise ``AutoFlipError`` if an option that a user gave does nothing.

    Parameters
    ----------
    policy : Policy
        What the options mean.
    options : Options
        Complete.
    changes : Options
        Those that the user gave; a preset's own may lie idle. None and "auto" ask for
        nothing.
    """
    for name, value in changes.items():
        given = value is not None and value != "auto"
        if given and (why := _why_idle(name, policy, options)):
            raise AutoFlipError(f"{name}={value!r} does nothing here: {why}")


def _why_idle(name: str, policy: Policy, options: Options) -> str:
    """Say why an option does nothing, and the way out; "" if it does something."""
    kind, goes = type(policy).__name__, _what_goes(policy)
    if name in _OF_NAMES and not isinstance(options["policy"], str):
        return f"{kind} is an object with settings of its own; set it there."
    if name in _OF_EXPLORERS and not policy.explores:
        return (
            f"{name} is about explorers, and {kind} needs none; leave it out, or use "
            "preset='guided'."
        )
    if name in _OF_GUIDANCE and not isinstance(policy, AutoFlipPolicy):
        return (
            f"policy='autoflip' reads it, and {kind} does not; leave it out, or use "
            "preset='guided'."
        )
    match name:
        case "threshold" | "priority" if isinstance(policy, Dense):
            return "policy='dense' keeps everything; name another policy."
        case "priority" if isinstance(policy, PruneFl | Structured):
            return f"{kind} has a rule of its own; give a threshold instead."
        case "exploration_fraction" if policy.max_explorers is not None:
            return f"{kind} explores on {policy.max_explorers} of a round's nodes."
        case "client_scale" if policy.max_explorers == 1:
            return f"{kind} has one explorer, whose scale is nobody else's."
        case "round_to" if not options["budgets"] and not _rounds(policy, options):
            return (
                f"{kind} counts no units by it; leave it out, or use policy='l1', or "
                "units='score'."
            )
        case "keep_output" | "regrow" if "weights" not in goes:
            return (
                "no single weight is pruned, only whole units; give single_weights, or "
                "units='all' or 'none', with preset='guided'."
            )
        case "rescale" if "units" not in goes or not _rescales(policy):
            return (
                f"{kind} makes its plan anew, or drops no units, and weights stay as "
                "they are; leave it out."
            )
        case "untrained" if not options["budgets"] and _all_trained(goes, options):
            return "every weight is trained, as nothing goes, or all may regrow."
    return ""


def _what_goes(policy: Policy) -> tuple[str, ...]:
    """Tell whether a policy's plans leave out units, single weights, or both."""
    match policy:
        case Dense():
            return ()
        case PruneFl() | EflPrune("magnitude") | AutoFlipPolicy(units="none"):
            return ("weights",)
        case L1Units() | RandomUnits() | Structured() | EflPrune():
            return ("units",)
        case AutoFlipPolicy(units="score", single_weights=None):
            return ("units",)
    return ("units", "weights")


def _rounds(policy: Policy, options: Options) -> bool:
    """Tell whether a policy that is given by its name keeps multiples of units."""
    if not isinstance(options["policy"], str):
        return False
    match policy:
        case L1Units() | RandomUnits() | AutoFlipPolicy(units="score"):
            return True
        case EflPrune(criterion):
            return criterion != "magnitude"
    return False


def _rescales(policy: Policy) -> bool:
    once = policy.rescales and not policy.per_round
    return once or policy.on_change == "restart"


def _all_trained(goes: tuple[str, ...], options: Options) -> bool:
    return not goes or (goes == ("weights",) and options["regrow"])
