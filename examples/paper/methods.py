"""Every method of the comparison, as options of one strategy."""

from .method import Method
from .studies import EXACT, STUDIES

CRITERIA = ("random", "l1", "l2", "similarity", "bn", "magnitude")
# EFLPrune's abstract: 63 % less compute on CIFAR-10. Magnitude saves parameters only.
EFLPRUNE_OWN = {c: "even-macs:0.37" for c in CRITERIA} | {"magnitude": "2.7x"}


def _all_methods() -> list[Method]:
    fedavg = {"policy": "dense", **EXACT}
    methods = [
        Method("fedavg", "FedAvg", fedavg, round_factor=1),
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
    ]
    prunefl = {"policy": "prunefl", **EXACT}
    methods += [
        Method("prunefl", "PruneFL", prunefl, "parameters"),
        Method("prunefl-own", "PruneFL, own size", prunefl),
    ]
    for criterion in CRITERIA:
        policy, title = f"eflprune-{criterion}", f"EFLPrune ({criterion})"
        options = {"policy": policy, **EXACT}
        own = options | {"threshold": EFLPRUNE_OWN[criterion]}
        methods += [
            Method(policy, title, options, "parameters"),
            Method(f"{policy}-own", f"{title}, own size", own),
        ]
    for policy, title in (
        ("structured", "Structured, weights kept"),
        ("structured-restart", "Structured"),
    ):
        options = {"policy": policy, **EXACT}
        methods += [
            Method(policy, title, options, "parameters"),
            Method(f"{policy}-own", f"{title}, own size", options),
        ]
    return methods


METHODS = {method.name: method for method in _all_methods()}

# Figure 8: share of nodes that explore, and times the literal preset's epochs.
EXPLORATIONS = {
    f"explore-{fraction}-{epochs}": Method(
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
# As many rounds as it takes a quarter of the MACs to spend what FedAvg spends.
LONGER = {
    "autoflip-4x": Method("autoflip-4x", "AutoFLIP, 4x the rounds", round_factor=4)
}
ABLATIONS = {"exploration": EXPLORATIONS, "threshold": THRESHOLDS}
GROUPS = ABLATIONS | {"longer": LONGER} | STUDIES
"""Name on the command line -> methods."""
EVERYTHING = METHODS | {
    name: method for group in GROUPS.values() for name, method in group.items()
}


def find_methods(names: str) -> list[Method]:
    """Read a list of names, such as ``"all"`` or ``"fedavg,autoflip"``.

    Parameters
    ----------
    names : str
        Names of methods, ablations ("exploration", "threshold") or studies ("size"),
        by commas.

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
    copies = (EVERYTHING[name] for name in wanted)
    wanted |= {method.model for method in copies if method.size != "own"}
    return [method for name, method in EVERYTHING.items() if name in wanted]
