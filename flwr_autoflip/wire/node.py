"""Server -> node: what a round asks for, as the node reads it.

A message may come from anybody. A node that knows its own model reads only what fits
it; one that does not, behind the mod, reads what a message of this length may honestly
ask for. Either is checked before memory is taken; only what a node accepted is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, cast, get_args

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from ..errors import WireError
from ..graph.codec import (
    VERSION,
    decode_layout,
    decode_plan,
    encode_plan,
    has_masks,
    plan_digest,
)
from ..graph.layout import Described, Layout, difference
from ..graph.pack import unpack_small
from ..graph.plan import Plan
from ..graph.plan_change import decode_change
from .encoding import DTYPES, Encoding
from .exploration import PAYLOADS, Payload
from .keys import (
    KEY_ANSWERING,
    KEY_BUDGET,
    KEY_CHANGE,
    KEY_COMPRESS,
    KEY_DIGEST,
    KEY_DTYPE,
    KEY_LAYOUT,
    KEY_PACKAGE,
    KEY_PAYLOAD,
    KEY_PHASE,
    KEY_PLAN,
    KEY_PROBE,
    KEY_REGROW,
    KEY_VERSION,
    PACKAGE_VERSION,
    PREFIX,
    RESIDUAL,
    STATE,
    Phase,
)
from .request import Orders

ROOM = 50_000_000
"""Bytes of memory that reading a message may take, whatever its length."""

ROOM_PER_BYTE = 1000
"""And this much more a byte that came, where the node's model is not known.

Four bytes of a dense weight for each of the values that are left of a hundred, in 8
bits, are 400.
"""


@dataclass(frozen=True)
class Request:
    """What a node was asked, read and checked; it has left no trace yet.

    Parameters
    ----------
    orders : Orders
        Phase, plan, values, and how to answer.
    digest : bytes
        Digest of the plan, to be sent back.
    config : dict
        The app's own configuration, without our keys.
    layout_bytes, plan_bytes : bytes
        What is held from now on, see :meth:`remember`.
    anew : bool
        The server assumes nothing of this node, as when a run begins.
    """

    orders: Orders
    digest: bytes
    config: dict[str, Any]
    layout_bytes: bytes
    plan_bytes: bytes
    anew: bool

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays of the small model."""
        return unpack_small(self.orders.values, self.orders.plan)

    def remember(self, state: RecordDict) -> None:
        """Keep layout and plan in ``context.state``, once nothing can be refused."""
        now: dict[str, Any] = {KEY_LAYOUT: self.layout_bytes, KEY_PLAN: self.plan_bytes}
        if self.anew or dict(state.config_records.get(STATE, {})) != now:
            state[STATE] = ConfigRecord(now)
            state.pop(RESIDUAL, None)  # of values under another plan, or another run's
        _keep((self.plan_bytes, self.layout_bytes), self.orders.plan)


def is_ours(config: Mapping[str, Any]) -> bool:
    """Tell whether a request comes from AutoFlip."""
    return KEY_VERSION in config


def read_request(
    values: NDArray[Any],
    config: Mapping[str, Any],
    state: RecordDict,
    own: Sequence[Described] | None = None,
) -> Request:
    """Read a request on the node.

    Parameters
    ----------
    values : ndarray
        The one flat array.
    config : mapping
        The ConfigRecord, the app's keys and ours.
    state : RecordDict
        ``context.state``; holds the last layout and plan. It is not changed, see
        :meth:`Request.remember`.
    own : sequence of Described, optional
        Tensors of the node's own model; a request that speaks of others is refused.
        Without them, one that speaks of more than its length can mean.

    Returns
    -------
    Request

    Raises
    ------
    WireError
        If anything about it is wrong; the message says what.
    """
    _check_versions(config)
    _check_types(config)
    phase, payload = config.get(KEY_PHASE), config.get(KEY_PAYLOAD, "update")
    if phase not in get_args(Phase) or payload not in PAYLOADS:
        raise WireError(f"unknown phase {phase!r} or payload {payload!r}.")
    plan, layout_bytes, plan_bytes = _find_plan(values, config, state, own)
    encoding = _read_encoding(config)
    if phase != "budget":
        values = encoding.decode(values, plan)
    orders = Orders(
        cast(Phase, phase),
        plan,
        values,
        encoding,
        config.get(KEY_REGROW, False),
        cast(Payload, payload),
        config.get(KEY_PROBE, False),
        config.get(KEY_BUDGET, ""),
    )
    app_config = {key: v for key, v in config.items() if not key.startswith(PREFIX)}
    digest = cast(bytes, config[KEY_DIGEST])
    anew = KEY_LAYOUT in config
    return Request(orders, digest, app_config, layout_bytes, plan_bytes, anew)


def _find_plan(
    values: NDArray[Any],
    config: Mapping[str, Any],
    state: RecordDict,
    own: Sequence[Described] | None,
) -> tuple[Plan, bytes, bytes]:
    """Give the plan whose digest came, and the bytes of its layout and its own."""
    held = dict(state.config_records.get(STATE, {}))
    layout_bytes = config.get(KEY_LAYOUT, held.get(KEY_LAYOUT, b""))
    plan_bytes = config.get(KEY_PLAN, held.get(KEY_PLAN, b""))
    change = config.get(KEY_CHANGE, b"") if plan_bytes else b""
    came = values.nbytes + len(layout_bytes) + len(plan_bytes) + len(change)
    if layout_bytes:
        layout = _read_layout(layout_bytes, came, own)
        # A node that only tells its budget makes nothing as large as the model.
        if config[KEY_PHASE] != "budget" or has_masks(plan_bytes) or change:
            _check_size(layout, came, own)
        if change:
            before = _read_plan(plan_bytes, layout_bytes, layout)
            plan_bytes = encode_plan(decode_change(change, before))
        if config.get(KEY_DIGEST) == plan_digest(plan_bytes, layout):
            plan = _read_plan(plan_bytes, layout_bytes, layout)
            return plan, layout_bytes, plan_bytes
    raise WireError(
        "this node does not hold the plan whose digest the server sent; it was "
        "probably restarted. The server sends the whole plan next time."
    )


# --- Layouts and plans: what fits, and what is kept ---


def _read_layout(
    layout_bytes: bytes, came: int, own: Sequence[Described] | None
) -> Layout:
    for (_, known), plan in [*_ACCEPTED.items()]:
        if known == layout_bytes:
            _check_own(own, [spec.described for spec in plan.layout.tensors])
            return plan.layout
    room = ROOM + (ROOM_PER_BYTE * came if own is None else _size_of(own))
    return decode_layout(layout_bytes, room, partial(_check_own, own))


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


def _check_size(layout: Layout, came: int, own: Sequence[Described] | None) -> None:
    size = _size_of([spec.described for spec in layout.tensors])
    most = ROOM + ROOM_PER_BYTE * came
    if own is None and size > most:
        raise WireError(
            f"the layout describes a model of {size / 1e6:.0f} MB; for the {came} "
            f"bytes that came up to {most / 1e6:.0f} MB are taken. AutoFlipClient "
            "knows its model and takes any number of them."
        )


def _read_encoding(config: Mapping[str, Any]) -> Encoding:
    dtype = config.get(KEY_DTYPE)
    if dtype not in DTYPES:
        raise WireError(f"unknown dtype {dtype!r} of values.")
    return Encoding(dtype, config.get(KEY_COMPRESS, False))


_TYPES: dict[str, type] = {
    **dict.fromkeys((KEY_LAYOUT, KEY_PLAN, KEY_CHANGE, KEY_DIGEST), bytes),
    **dict.fromkeys(
        (KEY_PHASE, KEY_PAYLOAD, KEY_DTYPE, KEY_BUDGET, KEY_ANSWERING), str
    ),
    **dict.fromkeys((KEY_COMPRESS, KEY_REGROW, KEY_PROBE), bool),
}


def _check_types(config: Mapping[str, Any]) -> None:
    for key, expected in _TYPES.items():
        if key in config and type(config[key]) is not expected:
            raise WireError(
                f"{key} must be {expected.__name__}, got {type(config[key]).__name__}."
            )


def _check_versions(config: Mapping[str, Any]) -> None:
    if config.get(KEY_VERSION) != VERSION:
        raise WireError(
            f"expected wire version {VERSION} from the server's AutoFlip, got "
            f"{config.get(KEY_VERSION, 'none')}; wrap the server's strategy in "
            "AutoFlip and install the same flwr-autoflip on both sides."
        )
    # The wire may be the same and what is trained still differ, as with a new preset.
    if config.get(KEY_PACKAGE) != PACKAGE_VERSION:
        raise WireError(
            f"this node runs flwr-autoflip {PACKAGE_VERSION}, the server "
            f"{config.get(KEY_PACKAGE, 'an unknown one')}; install one on both sides."
        )


# A node gets the same plan every round, and virtual nodes of one process share it: the
# same object then finds its index maps made already. Nothing refused is ever in here.
_ACCEPTED: dict[tuple[bytes, bytes], Plan] = {}
_MOST_ACCEPTED = 8


def _keep(key: tuple[bytes, bytes], plan: Plan) -> None:
    _ACCEPTED.pop(key, None)
    _ACCEPTED[key] = plan  # the newest is last
    while len(_ACCEPTED) > _MOST_ACCEPTED:
        _ACCEPTED.pop(next(iter(_ACCEPTED)), None)


def _read_plan(plan_bytes: bytes, layout_bytes: bytes, layout: Layout) -> Plan:
    plan = _ACCEPTED.get((plan_bytes, layout_bytes))
    return decode_plan(plan_bytes, layout) if plan is None else plan
