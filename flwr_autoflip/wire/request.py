"""Server -> node: what a round asks for, on its way out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from ..graph.codec import (
    VERSION,
    encode_layout,
    encode_plan,
    layout_digest,
    plan_digest,
)
from ..graph.layout import Arrays
from ..graph.pack import pack
from ..graph.plan import Plan
from ..graph.plan_change import encode_change
from .encoding import FLOAT32, Encoding
from .exploration import Payload
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
    PACKAGE_VERSION,
    VALUES,
    ClientApi,
    Phase,
    message_type,
)
from .records import records_of, to_arrayrecord


@dataclass(frozen=True)
class Orders:
    """What a round asks of its nodes, whatever each of them holds already.

    Parameters
    ----------
    phase : {"budget", "explore", "train", "evaluate"}
        ``"budget"`` only asks what the node can carry.
    plan : Plan
    values : ndarray
        ``(plan.num_values,)`` float32, on the node as they
        came out of the wire; none with ``"budget"``.
    encoding : Encoding (default: float32)
        Of values both ways.
    regrow : bool (default: False)
        Single weights that went may come back in training.
    payload : {"update", "deviation", "units", "weights"} (default: "update")
        What an explorer reports.
    probe : bool (default: False)
        Nodes also send gradients; see :mod:`flwr_autoflip.wire.probe`.
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
        values = pack(weights, plan)
        return cls(phase, plan, values, encoding, **rest)

    @cached_property
    def reply_plan(self) -> Plan:
        """What comes back: with ``regrow`` every weight of the units that stay."""
        return self.plan.without_mask() if self.regrow else self.plan

    @property
    def reply_encoding(self) -> Encoding:
        """How values come back; a probe's magnitudes behind them are plain floats."""
        return FLOAT32 if self.probe else self.encoding

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
    config |= {KEY_VERSION: VERSION, KEY_PACKAGE: PACKAGE_VERSION}
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
    if held.layout != layout_digest(layout):
        config[KEY_LAYOUT] = encode_layout(layout)
        plan_bytes += len(encode_layout(layout))
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
    return content, Held(layout_digest(layout), digest), plan_bytes


def _request_keys(
    phase: Phase, template: RecordDict, api: ClientApi
) -> tuple[str, str]:
    if api == "numpy":
        head = NUMPY_IN[message_type(phase)]
        return f"{head}.parameters", f"{head}.config"
    arrays = next(iter(records_of(template, ArrayRecord)), "arrays")
    return arrays, next(iter(records_of(template, ConfigRecord)), "config")
