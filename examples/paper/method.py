"""What a method of the comparison is: options of one strategy, and its training."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from .tasks import Scale

Size = Literal["own", "units", "parameters"]
OURS = (
    *("macs", "share", "shares", "exponent", "blend", "dense_rounds"),
    "statistics_of",
)
"""Options for policies and evaluation of these examples, not for AutoFlip."""


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
        For :class:`flwr_autoflip.AutoFlip`, and :data:`OURS`.
    size : {"own", "units", "parameters"}
        ``"units"``: as many units a group as ``model`` keeps; ``"parameters"``: the
        compression that it reached, which is how the paper compares.
    round_factor : int
        Rounds over FedAvg's. Small networks are cheaper a round, so they may take
        twice as many to spend what FedAvg spends. The literal presets spend that in
        exploration.
    factors : mapping of str to float
        What nodes do otherwise than FedAvg's: fields of :class:`.tasks.Scale`, times
        so much.
    changes : mapping of str to float
        Likewise, but what such a field is instead.
    model : str
        The method whose size is copied.
    rival : str
        The method that it has to beat in a study: random units, or the same without
        what it adds. "" is none.
    """

    name: str
    title: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    size: Size = "own"
    round_factor: int = 2
    factors: Mapping[str, float] = field(default_factory=dict, hash=False)
    changes: Mapping[str, float] = field(default_factory=dict, hash=False)
    model: str = "autoflip"
    rival: str = ""

    def tune(self, scale: Scale) -> Scale:
        """Apply ``factors`` and ``changes``; whole numbers stay whole."""
        changed: dict[str, Any] = dict(self.changes)
        for name, factor in self.factors.items():
            value = getattr(scale, name)
            changed[name] = type(value)(value * factor)
        return replace(scale, **changed)

    @property
    def package_options(self) -> dict[str, Any]:
        """Those of :class:`flwr_autoflip.AutoFlip`."""
        return {k: v for k, v in self.options.items() if k not in OURS}

    @property
    def literal(self) -> bool:
        """Whether exploration is the paper's: everybody, for E_exp epochs."""
        return self.options.get("preset") in ("paper", "authors-code")
