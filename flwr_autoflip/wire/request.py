"""Server -> node: what a round asks for, out and in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast, get_args

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from ..core.codec import VERSION, decode_plan, encode_plan, plan_digest
from ..core.encoding import DTYPES, FLOAT32, Encoding
from ..core.errors import WireError
from ..core.exploration import PAYLOADS, Payload
from ..core.layout import Arrays, Layout, layout_from_bytes
from ..core.plan import Plan
from ..core.plan_change import decode_change, encode_change
from ..core.values import pack, unpack_small
from ..core.version import __version__
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
    NUMPY_ARRAY,
    NUMPY_IN,
    PREFIX,
    RESIDUAL,
    STATE,
    VALUES,
    ClientApi,
    Phase,
    message_type,
)
from .records import records_of, to_arrayrecord

# --- Server: out ---


@dataclass(frozen=True)
class Orders:
    """What a round asks of its nodes, whatever each of them holds already.

    Parameters
    ----------
    phase : {"budget", "explore", "train", "evaluate"}
        ``"budget"`` only asks what the node can carry.
    plan : Plan
    values : ndarray
        ``(plan.num_values,)`` of the encoding's ``float_dtype``, on the node as they
        came out of the wire; none with ``"budget"``.
    encoding : Encoding (default: float32)
        Of values both ways.
    regrow : bool (default: False)
        Single weights that went may come back in training.
    payload : {"update", "deviation", "units", "weights"} (default: "update")
        What an explorer reports.
    probe : bool (default: False)
        Nodes also send gradients; see :mod:`flwr_autoflip.core.probe`.
    budget : str (default: "")
        The node's budget, which the plan was cut to.
    """

    phase: Phase
    plan: Plan
    values: NDArray[Any]
    encoding: Encoding = FLOAT32
    regrow: bool = False
    payload: Payload = "update"
    probe: bool = False
    budget: str = ""

    @classmethod
    def of(
        cls,
        phase: Phase,
        plan: Plan,
        weights: Arrays,
        encoding: Encoding,
        **rest: Any,
    ) -> "Orders":
        """Give orders with the values that a plan keeps of dense weights."""
        values = pack(weights, plan, encoding.float_dtype)
        return cls(phase, plan, values, encoding, **rest)

    @cached_property
    def reply_plan(self) -> Plan:
        """What comes back: with ``regrow`` every weight of the units that stay."""
        return self.plan.without_mask() if self.regrow else self.plan

    @property
    def reply_encoding(self) -> Encoding:
        """How values come back; a probe's magnitudes behind them are plain floats."""
        return Encoding(self.encoding.float_dtype) if self.probe else self.encoding

    @cached_property
    def encoded(self) -> NDArray[Any]:
        """The array that travels down."""
        if self.phase == "budget":
            return self.values
        return self.encoding.encode(self.values, self.plan)


@dataclass(frozen=True)
class Held:
    """Digests of what a node is known to hold."""

    layout: bytes = b""
    plan: bytes = b""


def request_content(
    orders: Orders,
    template: RecordDict,
    held: Held,
    api: ClientApi,
    before: Plan | None = None,
    answering: Sequence[str] = (),
) -> tuple[RecordDict, Held, int]:
    """Build the content of one request.

    Parameters
    ----------
    orders : Orders
    template : RecordDict
        The inner strategy's content: its ConfigRecord and its keys are kept.
    held : Held
        What the node holds; layout and plan are sent only if it lacks them.
    api : {"message", "numpy"}
        ``"numpy"`` for nodes that run a plain ``ClientApp(client_fn)``.
    before : Plan, optional
        The plan that the node holds; what changed since is sent if it is shorter.
    answering : sequence of str (default: ())
        Groups with removed units that a mod's app would still hear from.

    Returns
    -------
    content : RecordDict
    held : Held
        What the node holds once it has read this.
    plan_bytes : int
        How many of the content's bytes describe structure, not values.
    """
    encoded = encode_plan(orders.plan)
    digest = plan_digest(encoded, orders.plan.layout)
    configs = records_of(template, ConfigRecord)
    config: dict[str, Any] = dict(next(iter(configs.values()), {}))
    config |= {KEY_VERSION: VERSION, KEY_PACKAGE: __version__}
    config |= {KEY_PHASE: orders.phase, KEY_DIGEST: digest}
    config[KEY_DTYPE] = orders.encoding.dtype
    if orders.encoding.compress:
        config[KEY_COMPRESS] = True
    if orders.phase == "train":
        config[KEY_REGROW] = orders.regrow
        if answering:
            config[KEY_ANSWERING] = ", ".join(answering)
    if orders.probe:
        config[KEY_PROBE] = True
    if orders.budget:
        config[KEY_BUDGET] = orders.budget
    if orders.phase == "explore":
        config[KEY_PAYLOAD] = orders.payload
    plan_bytes = len(digest)
    layout = orders.plan.layout
    if held.layout != layout.digest:
        config[KEY_LAYOUT] = layout.encoded
        plan_bytes += len(layout.encoded)
    if held.plan != digest:
        change = None if before is None else encode_change(before, orders.plan)
        key, data = KEY_PLAN, encoded
        if change is not None and len(change) < len(encoded):
            key, data = KEY_CHANGE, change
        config[key] = data
        plan_bytes += len(data)
    # Named as the reply's array will be: Flower's clipping mods demand it.
    name = NUMPY_ARRAY if api == "numpy" else VALUES
    arrays = to_arrayrecord({name: orders.encoded})
    keys = _request_keys(orders.phase, template, api)
    content = RecordDict({keys[0]: arrays, keys[1]: ConfigRecord(config)})
    return content, Held(layout.digest, digest), plan_bytes


def _request_keys(
    phase: Phase, template: RecordDict, api: ClientApi
) -> tuple[str, str]:
    if api == "numpy":
        head = NUMPY_IN[message_type(phase)]
        return f"{head}.parameters", f"{head}.config"
    arrays = next(iter(records_of(template, ArrayRecord)), "arrays")
    return arrays, next(iter(records_of(template, ConfigRecord)), "config")


# --- Node: in ---


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


def is_ours(config: Mapping[str, Any]) -> bool:
    """Tell whether a request comes from AutoFlip."""
    return KEY_VERSION in config


def read_request(
    values: NDArray[Any], config: Mapping[str, Any], state: RecordDict
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
    held = dict(state.config_records.get(STATE, {}))
    layout_bytes = config.get(KEY_LAYOUT, held.get(KEY_LAYOUT, b""))
    plan_bytes = config.get(KEY_PLAN, held.get(KEY_PLAN, b""))
    if KEY_CHANGE in config and layout_bytes and plan_bytes:
        held_plan = _read_plan(plan_bytes, layout_bytes)
        plan_bytes = encode_plan(decode_change(config[KEY_CHANGE], held_plan))
    digest = config.get(KEY_DIGEST)
    if not layout_bytes or digest != plan_digest(
        plan_bytes, _read_layout(layout_bytes)
    ):
        raise WireError(
            "this node does not hold the plan whose digest the server sent; it was "
            "probably restarted. The server sends the whole plan next time."
        )
    plan = _read_plan(plan_bytes, layout_bytes)
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
    own = {key: v for key, v in config.items() if not key.startswith(PREFIX)}
    anew = KEY_LAYOUT in config
    return Request(orders, cast(bytes, digest), own, layout_bytes, plan_bytes, anew)


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
    if config.get(KEY_PACKAGE) != __version__:
        raise WireError(
            f"this node runs flwr-autoflip {__version__}, the server "
            f"{config.get(KEY_PACKAGE, 'an unknown one')}; install one on both sides."
        )


# A node gets the same plan every round, and virtual nodes of one process share it: the
# same object then finds its index maps, and the model cut by it, made already.


@lru_cache(maxsize=8)
def _read_plan(plan_bytes: bytes, layout_bytes: bytes) -> Plan:
    return decode_plan(plan_bytes, _read_layout(layout_bytes))


@lru_cache(maxsize=8)
def _read_layout(layout_bytes: bytes) -> Layout:
    return layout_from_bytes(layout_bytes)
