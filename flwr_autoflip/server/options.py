"""AutoFlip's options and their presets."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypedDict, get_args

from ..errors import AutoFlipError
from ..methods import Policy
from ..methods.autoflip import Units
from ..methods.base import Payload, ValueDtype
from ..methods.guidance import ClientScale, Normalization
from ..methods.policy import UnitCounts
from ..methods.robust import parse_combination
from ..methods.threshold import ThresholdLike
from ..wire.encoding import DTYPES

Priority = Literal["accuracy", "bandwidth", "compute", "memory"]

MAC_SHARES: Mapping[Priority, float] = {
    "accuracy": 0.5,
    "bandwidth": 0.25,
    "compute": 0.1,
    "memory": 0.1,
}
"""What ``threshold="auto"`` keeps of the MACs that can shrink."""


class Options(TypedDict, total=False):
    """Options of :class:`flwr_autoflip.AutoFlip`; what is left out is the preset's.

    One that does nothing beside the others, such as ``units`` with a policy that reads
    no guidance, is refused; so are those of a named policy beside a ``Policy`` object.

    Attributes
    ----------
    policy : Policy or str
        Who stays: a name in :data:`.policy_names.POLICIES`, or your own.
    priority : {"accuracy", "bandwidth", "compute", "memory"}
        What matters most, where ``threshold`` is ``"auto"``; see :data:`MAC_SHARES`.
    threshold : float, str, Threshold or mapping
        What stays: ``"auto"``, ``"macs:0.25"``, ``"even-macs:0.25"``, ``"2x"``
        (parameters), ``"mass:0.7"``, a float (the paper's T_p), ``"quantile:0.3"``, or
        units a group. A ratio is of what can shrink: MACs (or parameters) of layers
        without prunable units, such as excluded ones, are not part of it. At least a
        tenth of every group's units stays, unless units are counted or the policy is
        another paper's rule; a threshold that asks for less warns.
    value_dtype : {"float32", "float16", "int8"}
        Weights on the wire, both ways; 8 bits with error feedback. Buffers travel in
        float32.
    normalization : {"layer", "client"}
        Eq. 10: the authors' code, or the paper.
    client_scale : {"tensor", "raw"}
        Bring each explorer's deviations to the same mean in every tensor before they
        are combined, and refuse reports far outside the others' scale; or take them as
        they come, so that one explorer may decide alone.
    combination : str
        ``"mean"``, ``"trimmed-mean:0.2"`` or ``"median"`` over explorers.
    units : {"score", "all", "none"}
        A unit goes by its score, or when all its weights are marked, or never.
    single_weights : float, str or Threshold, optional
        Prune single weights inside what stays, too.
    guidance_from : {"explorers", "participants"}
        One plan from all explorers, or one a round from those who take part.
    keep_output : bool
        Never mask the output layer.
    round_to : int
        Keep a multiple of this many units a group, such as 8 for some hardware.
    exploration_fraction : float or "round"
        Share of nodes that explore; ``"round"``: as many as a round has.
    exploration_epochs : int, optional
        Sent to explorers as ``config["local-epochs"]``; None leaves the app's own.
    exploration_payload : {"update", "deviation", "units", "weights"}
        What explorers send: their update, its size, or sums a unit (a few kB); or
        plain weights, twice an update's bytes, for mods that clip or noise them.
    warm_start : bool
        Start from the explorers' aggregated update.
    untrained : {"keep", "zero"}
        What becomes of weights that nobody trained in a round.
    regrow : bool
        Single weights that went may come back in local training.
    rescale : bool
        Make up for lost inputs when the run's plan is made.
    budgets : bool
        Ask each node what it can carry, and send it that part of the plan.
    """

    policy: Policy | str
    priority: Priority
    threshold: ThresholdLike | UnitCounts
    value_dtype: ValueDtype
    normalization: Normalization
    client_scale: ClientScale
    combination: str
    units: Units
    single_weights: ThresholdLike | None
    guidance_from: Literal["explorers", "participants"]
    keep_output: bool
    round_to: int
    exploration_fraction: float | Literal["round"]
    exploration_epochs: int | None
    exploration_payload: Payload
    warm_start: bool
    untrained: Literal["keep", "zero"]
    regrow: bool
    rescale: bool
    budgets: bool


_GUIDED = Options(
    policy="autoflip",
    priority="bandwidth",
    threshold="auto",
    value_dtype="int8",
    normalization="layer",
    client_scale="tensor",
    combination="mean",
    units="score",
    single_weights=None,
    guidance_from="explorers",
    keep_output=True,
    round_to=1,
    exploration_fraction="round",
    exploration_epochs=None,
    exploration_payload="deviations",
    warm_start=True,
    untrained="keep",
    regrow=False,
    rescale=True,
    budgets=False,
)

PRESETS: Mapping[str, Options] = {
    # What works: small physical networks, one stable plan, 8 bits, no exploration.
    "default": {**_GUIDED, "policy": "l1"},
    # The paper's idea so that it works: one round's nodes explore, their deviations
    # choose the units of one plan.
    "guided": _GUIDED,
    # arXiv:2405.10271v3, Algorithm 1 and Table II, to the letter.
    "paper": Options(
        policy="autoflip",
        priority="bandwidth",
        threshold=0.3,
        value_dtype="float32",
        normalization="client",
        client_scale="raw",
        combination="mean",
        units="all",
        single_weights=None,
        guidance_from="participants",
        keep_output=False,
        round_to=1,
        exploration_fraction=1.0,
        exploration_epochs=150,
        exploration_payload="deviations",
        warm_start=False,
        untrained="zero",
        regrow=False,
        rescale=False,
        budgets=False,
    ),
    # Their public code: mean first, min-max a tensor, a global quantile with strict
    # ">", masks only, training from the explored model, zeros that grow back.
    "authors-code": Options(
        policy="autoflip",
        priority="bandwidth",
        threshold="global-quantile:0.3",
        value_dtype="float32",
        normalization="layer",
        client_scale="raw",
        combination="mean",
        units="none",
        single_weights=None,
        guidance_from="explorers",
        keep_output=False,
        round_to=1,
        exploration_fraction=1.0,
        exploration_epochs=150,
        exploration_payload="deviations",
        warm_start=True,
        untrained="keep",
        regrow=True,
        rescale=False,
        budgets=False,
    ),
}


def resolve_options(preset: str, changes: Options) -> Options:
    """Lay a user's options over a preset and check each.

    Parameters
    ----------
    preset : {"default", "guided", "paper", "authors-code"}
    changes : Options

    Returns
    -------
    Options
        Complete.

    Raises
    ------
    AutoFlipError
        On an unknown preset, name or value.
    """
    if preset not in PRESETS:
        raise AutoFlipError(f"preset must be one of {sorted(PRESETS)}, got {preset!r}.")
    for name in changes:
        if name not in _GUIDED:
            near = get_close_matches(name, _GUIDED, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"use {sorted(_GUIDED)}."
            raise AutoFlipError(f"AutoFlip has no option {name!r}; {hint}")
    options: Options = {**PRESETS[preset], **changes}
    check_choice("priority", options["priority"], get_args(Priority))
    if "priority" in changes and options["threshold"] != "auto":
        raise AutoFlipError(
            f"priority={options['priority']!r} chooses the threshold, which is "
            f"{options['threshold']!r} already; leave one of them out."
        )
    check_choice("value_dtype", options["value_dtype"], DTYPES)
    check_choice("untrained", options["untrained"], ("keep", "zero"))
    check_choice("client_scale", options["client_scale"], ("tensor", "raw"))
    parse_combination(options["combination"])
    fraction, epochs = options["exploration_fraction"], options["exploration_epochs"]
    if fraction != "round" and not (_is_real(fraction) and 0 < fraction <= 1):
        raise AutoFlipError(
            f"exploration_fraction must be 'round' or in (0, 1], got {fraction!r}."
        )
    if epochs is not None and not (isinstance(epochs, int) and epochs >= 1):
        raise AutoFlipError(f"exploration_epochs must be at least 1, got {epochs!r}.")
    multiple = options["round_to"]
    if not (isinstance(multiple, int) and multiple >= 1):
        raise AutoFlipError(f"round_to must be at least 1, got {multiple!r}.")
    if options["exploration_payload"] == "units" and (
        options["units"] != "score" or options["single_weights"] is not None
    ):
        raise AutoFlipError(
            "exploration_payload='units' sends sums a unit, which cannot choose single "
            "weights; use units='score' without single_weights, or another payload."
        )
    return options


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``AutoFlipError`` unless a setting is one of its choices."""
    if value not in choices:
        raise AutoFlipError(f"{name} must be one of {choices}, got {value!r}.")
