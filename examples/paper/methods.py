"""Every method of the comparison, as options of one strategy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Size = Literal["own", "units", "parameters"]
EXACT = {"value_dtype": "float32"}
"""What other papers' methods send."""
CRITERIA = ("random", "l1", "l2", "similarity", "bn", "magnitude")
# EFLPrune's abstract: 63 % less compute on CIFAR-10. Magnitude saves parameters only.
EFLPRUNE_OWN = {c: "even-macs:0.37" for c in CRITERIA} | {"magnitude": "2.7x"}


@dataclass(frozen=True)
class Method:
    """What is compared.

    Parameters
    ----------
    name : str
        On the command line and in the names of runs.
    title : str
        In tables.
    options : mapping
        Of :class:`flwr_autoflip.AutoFlip`.
    size : {"own", "units", "parameters"}
        ``"units"``: as many units a group as AutoFLIP's run of the same seed kept;
        ``"parameters"``: the compression that it reached, which is how the paper
        compares.
    round_factor : int
        Rounds over FedAvg's. Small networks are cheaper a round, so they may take
        twice as many to spend what FedAvg spends. The literal presets spend that in
        exploration.
    epoch_factor : int
        Local epochs over FedAvg's.
    """

    name: str
    title: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    size: Size = "own"
    round_factor: int = 2
    epoch_factor: int = 1

    @property
    def literal(self) -> bool:
        """Whether exploration is the paper's: everybody, for E_exp epochs."""
        return self.options.get("preset") in ("paper", "authors-code")


def _by_name(methods: Iterable[Method]) -> dict[str, Method]:
    return {method.name: method for method in methods}


def _with_own_size(
    name: str, title: str, own: Mapping[str, Any] | None = None
) -> list[Method]:
    """Give another paper's method, at AutoFLIP's compression and at its own."""
    options = {"policy": name, **EXACT}
    return [
        Method(name, title, options, "parameters"),
        Method(f"{name}-own", f"{title}, own size", options | dict(own or {})),
    ]


METHODS = _by_name(
    [
        Method("fedavg", "FedAvg", {"policy": "dense", **EXACT}, round_factor=1),
        Method("fedavg-int8", "FedAvg, 8 bits", {"policy": "dense"}, round_factor=1),
        Method("autoflip", "AutoFLIP"),
        Method("guided", "AutoFLIP, guided", {"preset": "guided"}),
        Method("random", "random units", {"policy": "random"}, "units"),
        Method(
            "autoflip-paper", "AutoFLIP, paper", {"preset": "paper"}, round_factor=1
        ),
        Method(
            "autoflip-authors",
            "AutoFLIP, authors",
            {"preset": "authors-code"},
            round_factor=1,
        ),
        *_with_own_size("prunefl", "PruneFL"),
        *(
            method
            for criterion, size in EFLPRUNE_OWN.items()
            for method in _with_own_size(
                f"eflprune-{criterion}", f"EFLPrune ({criterion})", {"threshold": size}
            )
        ),
        *_with_own_size("structured", "Structured, weights kept"),
        *_with_own_size("structured-restart", "Structured"),
    ]
)
# Figure 8: share of nodes that explore, and for how many epochs.
EXPLORATIONS = _by_name(
    Method(
        f"explore-{fraction}-{epochs}",
        f"{fraction:g} of nodes, {epochs} epochs",
        {
            "preset": "guided",
            "exploration_fraction": fraction,
            "exploration_epochs": epochs,
        },
        round_factor=1,
    )
    for fraction in (0.25, 0.5, 0.75, 1.0)
    for epochs in (1, 2, 5)
)
# Figure 9, on the literal preset.
THRESHOLDS = _by_name(
    Method(
        f"threshold-{value}",
        f"T_p = {value}",
        {"preset": "paper", "threshold": value},
        round_factor=1,
    )
    for value in (0.1, 0.2, 0.3, 0.4, 0.5)
)
# As many rounds as it takes a quarter of the MACs to spend what FedAvg spends.
LONGER = _by_name([Method("autoflip-4x", "AutoFLIP, 4x the rounds", round_factor=4)])
# Rounds of twice the epochs, each half as expensive as one of FedAvg's.
EPOCHS = _by_name(
    [
        Method(
            "autoflip-epochs2",
            "AutoFLIP, twice the epochs",
            round_factor=1,
            epoch_factor=2,
        )
    ]
)
GROUPS = {
    "exploration": EXPLORATIONS,
    "threshold": THRESHOLDS,
    "longer": LONGER,
    "epochs": EPOCHS,
}
"""Name on the command line -> methods."""
EVERYTHING = METHODS | {
    name: method for group in GROUPS.values() for name, method in group.items()
}


def find_methods(names: str) -> list[Method]:
    """Read a list of names, such as ``"all"`` or ``"fedavg,autoflip"``.

    Parameters
    ----------
    names : str
        Names of methods and groups, by commas.

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
        elif name in GROUPS:
            wanted |= set(GROUPS[name])
        elif name in EVERYTHING:
            wanted.add(name)
        else:
            known = ", ".join(("all", *METHODS, *GROUPS))
            raise ValueError(f"methods: expected some of {known}, got {name!r}.")
    if any(EVERYTHING[name].size != "own" for name in wanted):
        wanted.add("autoflip")
    return [method for name, method in EVERYTHING.items() if name in wanted]
