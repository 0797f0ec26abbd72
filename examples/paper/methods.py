"""Every method of the comparison, as options of one strategy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Size = Literal["own", "units", "parameters"]


@dataclass(frozen=True)
class Method:
    """What is compared.

    Parameters
    ----------
    name : str
        On the command line and in folders.
    title : str
        In tables.
    options : mapping
        For :class:`flwr_autoflip.AutoFlip`.
    size : {"own", "units", "parameters"}
        ``"units"``: as many units a group as AutoFLIP keeps; ``"parameters"``: the
        compression that AutoFLIP reached, which is how the paper compares.
    round_factor : int
        Rounds over FedAvg's. Small networks are cheaper a round, so they may take
        twice as many to spend what FedAvg spends. The literal presets spend that in
        exploration.
    """

    name: str
    title: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    size: Size = "own"
    round_factor: int = 2

    @property
    def literal(self) -> bool:
        """Whether exploration is the paper's: everybody, for E_exp epochs."""
        return "preset" in self.options


CRITERIA = ("random", "l1", "l2", "similarity", "bn", "magnitude")
# EFLPrune's abstract: 63 % less compute on CIFAR-10. Magnitude saves parameters only.
EFLPRUNE_OWN = {c: "macs:0.37" for c in CRITERIA} | {"magnitude": "2.7x"}


def _all_methods() -> list[Method]:
    methods = [
        Method("fedavg", "FedAvg", {"policy": "dense"}, round_factor=1),
        Method("autoflip", "AutoFLIP"),
        Method("random", "random units", {"policy": "random"}, "units"),
        Method("l1", "L1 units", {"policy": "l1"}, "units"),
        Method(
            "autoflip-paper", "AutoFLIP, paper", {"preset": "paper"}, round_factor=1
        ),
        Method(
            "autoflip-authors",
            "AutoFLIP, authors",
            {"preset": "authors-code"},
            round_factor=1,
        ),
        Method("prunefl", "PruneFL", {"policy": "prunefl"}, "parameters"),
        Method("prunefl-own", "PruneFL, own size", {"policy": "prunefl"}),
    ]
    for criterion in CRITERIA:
        policy, title = f"eflprune-{criterion}", f"EFLPrune ({criterion})"
        own = {"policy": policy, "threshold": EFLPRUNE_OWN[criterion]}
        methods += [
            Method(policy, title, {"policy": policy}, "parameters"),
            Method(f"{policy}-own", f"{title}, own size", own),
        ]
    for policy, title in (
        ("structured", "Structured, weights kept"),
        ("structured-restart", "Structured"),
    ):
        methods += [
            Method(policy, title, {"policy": policy}, "parameters"),
            Method(f"{policy}-own", f"{title}, own size", {"policy": policy}),
        ]
    return methods


METHODS = {method.name: method for method in _all_methods()}

# Figure 8: share of nodes that explore, and times the literal preset's epochs.
EXPLORATIONS = {
    f"explore-{fraction}-{epochs}": Method(
        f"explore-{fraction}-{epochs}",
        f"{fraction:g} of nodes, {epochs} epochs",
        {"exploration_fraction": fraction, "exploration_epochs": epochs},
        round_factor=1,
    )
    for fraction in (0.25, 0.5, 0.75, 1.0)
    for epochs in (1, 2, 5)
}
# Figure 9, on the literal preset.
THRESHOLDS = {
    f"threshold-{value}": Method(
        f"threshold-{value}",
        f"T_p = {value}",
        {"preset": "paper", "threshold": value},
        round_factor=1,
    )
    for value in (0.1, 0.2, 0.3, 0.4, 0.5)
}
ABLATIONS = {"exploration": EXPLORATIONS, "threshold": THRESHOLDS}
EVERYTHING = METHODS | EXPLORATIONS | THRESHOLDS


def find_methods(names: str) -> list[Method]:
    """Read a list of names, such as ``"all"`` or ``"fedavg,autoflip"``.

    Parameters
    ----------
    names : str
        Names of methods or of ablations ("exploration", "threshold"), by commas.

    Returns
    -------
    list of Method
        In the order in which they have to run: what others need comes first.

    Raises
    ------
    ValueError
        With the known names.
    """
    wanted: set[str] = set()
    for name in names.split(","):
        if name == "all":
            wanted |= set(METHODS)
        elif name in ABLATIONS:
            wanted |= set(ABLATIONS[name])
        elif name in EVERYTHING:
            wanted.add(name)
        else:
            known = ", ".join(("all", *METHODS, *ABLATIONS))
            raise ValueError(f"methods: expected some of {known}, got {name!r}.")
    if any(EVERYTHING[name].size != "own" for name in wanted):
        wanted.add("autoflip")
    return [method for name, method in EVERYTHING.items() if name in wanted]
