"""Server -> node: what a round asks for, as the node reads it.

A message may come from anybody. A node that knows its own model reads only what fits
it; one that does not, behind the mod, reads what a message of this length may honestly
ask for. Either is checked before memory is taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from ..errors import WireError
from ..graph.codec import VERSION, decode_layout, decode_plan
from ..graph.layout import Described, Layout, difference
from ..graph.pack import unpack_small
from ..graph.plan import Plan, dense_plan
from . import keys
from .encoding import DTYPES, Encoding
from .instructions import PAYLOADS, Instructions
from .records import only_record, records_of, single_array

ROOM = 50_000_000
"""Bytes of memory that reading a message may take, whatever its length."""

ROOM_PER_BYTE = 1000
"""And this much more a byte that came, where the node's model is not known.

Four bytes of a dense weight for each of the values that are left of a hundred, in 8
bits, are 400.
"""

_TYPES: dict[str, tuple[type, Any]] = {
    keys.PHASE: (str, ""),
    keys.RUN: (bytes, b""),
    keys.LAYOUT: (bytes, b""),
    keys.PLAN: (bytes, b""),
    keys.DTYPE: (str, ""),
    keys.PAYLOAD: (str, "values"),
    keys.REGROW: (bool, False),
    keys.BUDGET: (str, ""),
    keys.ANSWERING: (str, ""),
    keys.ARRAYS_NAME: (str, keys.ARRAYS),
    keys.CONFIG_NAME: (str, keys.CONFIG),
}
"""Our keys: what they hold, and what it is where they are left out."""


@dataclass(frozen=True)
class Request:
    """What a node was asked, read and checked.

    Parameters
    ----------
    instructions : Instructions
    config : dict
        The app's own, without our keys.
    run : bytes
        Names the run.
    answering : str
        Groups whose pruned units an app behind the mod would still hear from.
    names : tuple of str
        Of the records of arrays and config that an app that exists looks for.
    """

    instructions: Instructions
    config: dict[str, Any]
    run: bytes
    answering: str
    names: tuple[str, str]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays of the small model."""
        return unpack_small(self.instructions.values, self.instructions.plan)


def is_ours(content: RecordDict) -> bool:
    """Tell whether a request comes from AutoFlip."""
    return any(keys.VERSION in c for c in records_of(content, ConfigRecord).values())


def read_request(
    content: RecordDict, own: Sequence[Described] | None = None
) -> Request:
    """Read a request on the node: one flat array, and one config with our keys in it.

    ``own`` are the tensors of the node's own model: a request that speaks of others is
    refused. Without them, one that speaks of more than its length can mean is. Raises
    ``WireError``, which says what is wrong.
    """
    config = dict(only_record(content, ConfigRecord))
    values = single_array(only_record(content, ArrayRecord))
    _check_versions(config)
    ours = {key: config.get(key, usual) for key, (_, usual) in _TYPES.items()}
    for key, (expected, _) in _TYPES.items():
        if type(ours[key]) is not expected:
            found = type(ours[key]).__name__
            raise WireError(f"{key} must be {expected.__name__}, got {found}.")
    phase, payload = ours[keys.PHASE], ours[keys.PAYLOAD]
    if payload not in PAYLOADS.get(phase, ()):
        raise WireError(f"unknown phase {phase!r} with payload {payload!r}.")
    if ours[keys.DTYPE] not in DTYPES:
        raise WireError(f"unknown dtype {ours[keys.DTYPE]!r} of values.")
    encoding = Encoding(ours[keys.DTYPE])
    came = ours[keys.LAYOUT], ours[keys.PLAN]
    plan = _read_plan(came, values.nbytes, own, dense=phase == "budget")
    if phase != "budget":
        values = encoding.decode(values, plan)
        _keep(came, plan)
    regrow, budget = ours[keys.REGROW], ours[keys.BUDGET]
    return Request(
        Instructions(phase, plan, values, encoding, regrow, payload, budget),
        {key: x for key, x in config.items() if not key.startswith(keys.PREFIX)},
        ours[keys.RUN],
        ours[keys.ANSWERING],
        (ours[keys.ARRAYS_NAME], ours[keys.CONFIG_NAME]),
    )


def _check_versions(config: Mapping[str, Any]) -> None:
    if config.get(keys.VERSION) != VERSION:
        raise WireError(
            f"expected wire version {VERSION} from the server's AutoFlip, got "
            f"{config.get(keys.VERSION, 'none')}; wrap the server's strategy in "
            "AutoFlip and install the same flwr-autoflip on both sides."
        )
    # The wire may be the same and what is trained still differ.
    if config.get(keys.PACKAGE) != keys.PACKAGE_VERSION:
        raise WireError(
            f"this node runs flwr-autoflip {keys.PACKAGE_VERSION}, the server "
            f"{config.get(keys.PACKAGE, 'an unknown one')}; install one on both "
            "sides."
        )


# --- Layouts and plans: what fits, and what is kept ---


_ACCEPTED: dict[tuple[bytes, bytes], Plan] = {}
"""The last plans that were read, by the bytes of their layout and their own.

A node gets the same plan every round, and virtual nodes of one process share it: the
same object then finds its index maps made already. Nothing refused is ever in here.
"""
_MOST_ACCEPTED = 8


def _keep(key: tuple[bytes, bytes], plan: Plan) -> None:
    _ACCEPTED.pop(key, None)
    _ACCEPTED[key] = plan  # the newest is last
    while len(_ACCEPTED) > _MOST_ACCEPTED:
        _ACCEPTED.pop(next(iter(_ACCEPTED)), None)


def _read_plan(
    came: tuple[bytes, bytes],
    value_bytes: int,
    own: Sequence[Described] | None,
    dense: bool,
) -> Plan:
    """Read layout and plan; with ``dense``, which takes no memory, layout alone."""
    layout_bytes, plan_bytes = came
    most = ROOM + ROOM_PER_BYTE * (value_bytes + len(layout_bytes) + len(plan_bytes))
    known = {layout: plan.layout for (layout, _), plan in [*_ACCEPTED.items()]}
    if (layout := known.get(layout_bytes)) is None:
        room = most if own is None else ROOM + _size_of(own)
        layout = decode_layout(layout_bytes, room, partial(_check_own, own))
    else:
        _check_own(own, [spec.described for spec in layout.tensors])
    if dense:
        return dense_plan(layout)
    if own is None:
        _check_size(layout, most)
    plan = _ACCEPTED.get(came)
    return decode_plan(plan_bytes, layout) if plan is None else plan


def _check_own(own: Sequence[Described] | None, tensors: Sequence[Described]) -> None:
    if own is None:
        return
    have, want = ({t[0]: _words(t) for t in side} for side in (own, tensors))
    if fault := difference(have, want):
        raise WireError(fault)


def _words(tensor: Described) -> str:
    _, shape, dtype, same_as = tensor
    return f"{dtype} {shape}" + (f", the same as {same_as}" if same_as else "")


def _size_of(tensors: Sequence[Described]) -> int:
    """Bytes of dense tensors."""
    return sum(prod(shape) * np.dtype(dtype).itemsize for _, shape, dtype, _ in tensors)


def _check_size(layout: Layout, most: int) -> None:
    size = _size_of([spec.described for spec in layout.tensors])
    if size > most:
        raise WireError(
            f"the layout describes a model of {size / 1e6:.0f} MB; for a message of "
            f"this length up to {most / 1e6:.0f} MB are taken. AutoFlipClient knows "
            "its model and takes any number of them."
        )
