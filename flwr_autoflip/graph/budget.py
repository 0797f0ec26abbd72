"""What a node can carry, relative to the dense model's cost."""

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from ..errors import AutoFlipError

Resource = Literal["macs", "parameters", "memory"]

_WAYS = (
    "'macs:0.25', 'parameters:0.5' or 'memory:0.5', a ratio in (0, 1] of the dense "
    "model's"
)


@dataclass(frozen=True)
class Budget:
    """The largest cost that a node can carry, relative to the dense model's.

    Parameters
    ----------
    resource : {"macs", "parameters", "memory"}
        Of the model as it is built, so single zeros in it count: forward MACs,
        trainable values, or :func:`flwr_autoflip.ledger.cost.count_training_memory`.
    ratio : float
        In (0, 1).
    """

    resource: Resource
    ratio: float

    def __str__(self) -> str:
        """Write it as :func:`parse_budget` reads it."""
        return f"{self.resource}:{self.ratio!r}"


def parse_budget(value: Any, *, whose: str) -> Budget | None:
    """Read a budget.

    Parameters
    ----------
    value : str or None
        ``"macs:RATIO"``, ``"parameters:RATIO"`` or ``"memory:RATIO"``; None or ``""``
        where there is none.
    whose : str
        For the error's first words.

    Returns
    -------
    Budget or None
        None for a node that carries the dense model.

    Raises
    ------
    AutoFlipError
        If it is anything else; the message lists the accepted forms.

    Examples
    --------
    >>> parse_budget("macs:0.25", whose="node 7")
    Budget(resource='macs', ratio=0.25)
    >>> parse_budget("parameters:1", whose="node 7") is None
    True
    """
    if value is None or value == "":
        return None
    resource, _, number = value.partition(":") if isinstance(value, str) else ("",) * 3
    try:
        ratio = float(number)
    except ValueError:
        ratio = 0.0
    if resource not in get_args(Resource) or not 0 < ratio <= 1:
        raise AutoFlipError(
            f"{whose}: autoflip-budget must be {_WAYS}, got {value!r}; mend the node's "
            "--node-config."
        )
    return None if ratio == 1 else Budget(cast(Resource, resource), ratio)
