"""Every method of the comparison, for one strategy, wire, client and ledger."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from flwr_autoflip.methods import (
    L1,
    AuthorsCode,
    Dense,
    EFLPrune,
    Guided,
    Method,
    Order,
    Paper,
    PruneFL,
    Random,
    Structured,
)
from flwr_autoflip.methods.base import Explored

from ..inprocess import FIRST_NODE

# EFLPrune's abstract: 63 % less compute on CIFAR-10. Magnitude saves parameters only.
EFLPRUNE_OWN = {
    **dict.fromkeys(("random", "l1", "l2", "similarity", "bn"), "even-macs:0.37"),
    "magnitude": "2.7x",
}


@dataclass(frozen=True)
class Given:
    """What a run gives its method.

    Parameters
    ----------
    seed, nodes : int
    quarter : int
        Of FedAvg's rounds: PruneFL adjusts every 50 of the paper's 200 rounds,
        structured pruning may prune in as many.
    epochs : int
        E_exp, for the literal methods.
    threshold : str or None
        The compression that AutoFLIP's run of the same seed reached, such as ``"4x"``,
        for who copies it.
    """

    seed: int
    nodes: int
    quarter: int
    epochs: int
    threshold: str | None


Make = Callable[[Given], Method[Any]]


@dataclass(frozen=True)
class Compared:
    """What is compared.

    Parameters
    ----------
    name, title : str
        In the names of runs, and in tables.
    make : callable
        Makes the method.
    value_dtype : {"int8", "float32"}
        On the wire; other papers' methods send what their authors send.
    copies : bool
        Whether it has AutoFLIP's compression, which is how the paper compares.
    round_factor, epoch_factor : int
        Rounds and local epochs over FedAvg's. Small networks are cheaper a round, so
        they may take twice as many to spend what FedAvg spends. The literal methods
        spend that in exploration.
    explores : bool
        Whether its round 1 explores.
    figures : tuple of float
        What it is in Figure 8 or 9: fraction of nodes and epochs, or T_p.
    """

    name: str
    title: str
    make: Make
    value_dtype: Literal["int8", "float32"] = "int8"
    copies: bool = False
    round_factor: int = 2
    epoch_factor: int = 1
    explores: bool = False
    figures: tuple[float, ...] = ()

    def __reduce__(self) -> Any:
        """Travel to other processes by name."""
        return find_method, (self.name,)


@dataclass(frozen=True, kw_only=True)
class Exploring(Guided):
    """Explore on chosen nodes, and for longer: Figure 8."""

    explorers: tuple[int, ...]
    epochs: int

    def order(self, state: Explored, server_round: int, nodes: Sequence[int]) -> Order:
        """Say who explores, and for how long; see :meth:`.Method.order`."""
        asked = super().order(state, server_round, nodes)
        if state.explored:
            return asked
        return replace(asked, who=self.explorers, epochs=self.epochs)


def _by_name(methods: Iterable[Compared]) -> dict[str, Compared]:
    return {method.name: method for method in methods}


def _with_own_size(
    name: str, title: str, make: Make, own: str | None = None, **more: Any
) -> list[Compared]:
    """Give another paper's method, at AutoFLIP's compression and at its own."""

    def at_own(given: Given) -> Method[Any]:
        return make(replace(given, threshold=own))

    one = Compared(name, title, make, "float32", copies=True, **more)
    name, title = f"{name}-own", f"{title}, own size"
    return [one, replace(one, name=name, title=title, make=at_own, copies=False)]


def _eflprune(criterion: Any) -> Make:
    return lambda g: EFLPrune(criterion, g.seed, threshold=g.threshold)


def _structured(restart: bool) -> Make:
    return lambda g: Structured(
        threshold=g.threshold, last_round=1 + g.quarter, restart=restart
    )


def _exploring(fraction: float, epochs: int) -> Make:
    def make(given: Given) -> Method[Any]:
        count = max(1, round(fraction * given.nodes))
        explorers = tuple(range(FIRST_NODE, FIRST_NODE + count))
        return Exploring(explorers=explorers, epochs=epochs)

    return make


METHODS = _by_name(
    [
        Compared("fedavg", "FedAvg", lambda g: Dense(), "float32", round_factor=1),
        Compared("fedavg-int8", "FedAvg, 8 bits", lambda g: Dense(), round_factor=1),
        Compared("autoflip", "AutoFLIP", lambda g: L1(macs=0.25)),
        Compared(
            "guided", "AutoFLIP, guided", lambda g: Guided(macs=0.25), explores=True
        ),
        Compared("random", "random units", lambda g: Random(macs=0.25, seed=g.seed)),
        Compared(
            "autoflip-paper",
            "AutoFLIP, paper",
            lambda g: Paper(epochs=g.epochs),
            round_factor=1,
            explores=True,
        ),
        Compared(
            "autoflip-authors",
            "AutoFLIP, authors",
            lambda g: AuthorsCode(epochs=g.epochs),
            round_factor=1,
            explores=True,
        ),
        *_with_own_size(
            "prunefl",
            "PruneFL",
            lambda g: PruneFL(g.threshold, interval=g.quarter),
            explores=True,
        ),
        *(
            method
            for criterion, own in EFLPRUNE_OWN.items()
            for method in _with_own_size(
                f"eflprune-{criterion}",
                f"EFLPrune ({criterion})",
                _eflprune(criterion),
                own,
            )
        ),
        *_with_own_size("structured", "Structured, weights kept", _structured(False)),
        *_with_own_size("structured-restart", "Structured", _structured(True)),
    ]
)
# Figure 8: fraction of nodes that explore, and for how many epochs.
EXPLORATIONS = _by_name(
    Compared(
        f"explore-{fraction}-{epochs}",
        f"{fraction:g} of nodes, {epochs} epochs",
        _exploring(fraction, epochs),
        round_factor=1,
        explores=True,
        figures=(fraction, epochs),
    )
    for fraction in (0.25, 0.5, 0.75, 1.0)
    for epochs in (1, 2, 5)
)
# Figure 9, on the literal method.
THRESHOLDS = _by_name(
    Compared(
        f"threshold-{value}",
        f"T_p = {value}",
        lambda g, value=value: Paper(value, g.epochs),  # type: ignore[misc]
        round_factor=1,
        explores=True,
        figures=(value,),
    )
    for value in (0.1, 0.2, 0.3, 0.4, 0.5)
)


def _varied(suffix: str, title: str, **changes: Any) -> dict[str, Compared]:
    """Give the default with something changed."""
    name, title = f"autoflip-{suffix}", f"AutoFLIP, {title}"
    return {name: replace(METHODS["autoflip"], name=name, title=title, **changes)}


# As many rounds as it takes a quarter of the MACs to spend what FedAvg spends.
LONGER = _varied("4x", "4x the rounds", round_factor=4)
# Rounds of twice the epochs, each half as expensive as one of FedAvg's.
EPOCHS = _varied("epochs2", "twice the epochs", round_factor=1, epoch_factor=2)
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


def find_method(name: str) -> Compared:
    """Give a method by its name."""
    return EVERYTHING[name]


def find_methods(names: str) -> list[Compared]:
    """Read a list of names, such as ``"all"`` or ``"fedavg,autoflip"``.

    Parameters
    ----------
    names : str
        Names of methods and groups, by commas.

    Returns
    -------
    list of Compared
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
    if any(EVERYTHING[name].copies for name in wanted):
        wanted.add("autoflip")
    return [method for name, method in EVERYTHING.items() if name in wanted]
