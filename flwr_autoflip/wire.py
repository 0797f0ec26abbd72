"""Flower's records <-> core values, and every record key we use (wire version 1).

Down: one ArrayRecord with one flat Array, and the app's own ConfigRecord with our keys
in it. Up: one flat Array, the app's MetricRecord, and a receipt. The server knows the
plan, so an upload carries no mask. Neither side trusts the other: version, digest,
length, dtype and finiteness are checked before a value is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from numpy.typing import NDArray

from .core.codec import (
    VERSION,
    check_values,
    decode_plan,
    encode_plan,
    from_half,
    plan_digest,
    to_half,
    unpack_small,
)
from .core.errors import WireError
from .core.guidance import Report, deviation, report_by_unit, split_by_group
from .core.layout import Arrays, Layout, layout_from_bytes
from .core.plan import Plan

Phase = Literal["explore", "train", "evaluate"]
Payload = Literal["update", "deviation", "units"]
ClientApi = Literal["message", "numpy"]

PAYLOADS: tuple[Payload, ...] = ("update", "deviation", "units")
PREFIX = "autoflip-"
KEY_VERSION = "autoflip-version"
KEY_PHASE = "autoflip-phase"
KEY_LAYOUT = "autoflip-layout"
KEY_PLAN = "autoflip-plan"
KEY_DIGEST = "autoflip-plan-digest"
KEY_PAYLOAD = "autoflip-payload"
KEY_DTYPE = "autoflip-dtype"
KEY_REGROW = "autoflip-regrow"
KEY_SCALE = "autoflip-scale"
KEY_PARAMETERS = "autoflip-parameters"
KEY_EXAMPLES = "autoflip-examples"
KEY_EVAL_EXAMPLES = "autoflip-eval-examples"
KEY_SECONDS = "autoflip-seconds"

VALUES = "values"
STATE = "autoflip"
RECEIPT = "autoflip"
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"

# What Flower's NumPyClient adapter reads and writes.
_NUMPY_IN = {"train": "fitins", "evaluate": "evaluateins"}
_NUMPY_OUT = {"train": "fitres", "evaluate": "evaluateres"}


# --- Server: request out ---


@dataclass(frozen=True)
class Orders:
    """What a round asks of its nodes, whatever each of them holds already.

    Parameters
    ----------
    phase : {"explore", "train", "evaluate"}
    plan : Plan
    values : ndarray
        ``(plan.num_values,)``.
    dtype : str
        Dtype of values on the way up.
    regrow : bool (default: False)
        Single weights that went may come back in training.
    payload : {"update", "deviation", "units"} (default: "update")
        What an explorer reports.
    """

    phase: Phase
    plan: Plan
    values: NDArray[Any]
    dtype: str = "float32"
    regrow: bool = False
    payload: Payload = "update"

    @property
    def reply_plan(self) -> Plan:
        """What comes back: with ``regrow`` every weight of the units that stay."""
        return self.plan.without_mask() if self.regrow else self.plan


@dataclass(frozen=True)
class Held:
    """Digests of what a node is known to hold."""

    layout: bytes = b""
    plan: bytes = b""


def request_content(
    orders: Orders, template: RecordDict, held: Held, api: ClientApi
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

    Returns
    -------
    content : RecordDict
    held : Held
        What the node holds once it has read this.
    plan_bytes : int
        How many of the content's bytes describe structure, not values.
    """
    encoded = encode_plan(orders.plan)
    digest = plan_digest(encoded)
    config: dict[str, Any] = dict(next(iter(template.config_records.values()), {}))
    config |= {KEY_VERSION: VERSION, KEY_PHASE: orders.phase, KEY_DIGEST: digest}
    if orders.phase == "train":
        config |= {KEY_DTYPE: orders.dtype, KEY_REGROW: orders.regrow}
    if orders.phase == "explore":
        config[KEY_PAYLOAD] = orders.payload
    plan_bytes = len(digest)
    layout = orders.plan.layout
    if held.layout != layout.digest:
        config[KEY_LAYOUT] = layout.encoded
        plan_bytes += len(layout.encoded)
    if held.plan != digest:
        config[KEY_PLAN] = encoded
        plan_bytes += len(encoded)
    arrays = ArrayRecord({VALUES: Array(orders.values)})
    keys = _request_keys(orders.phase, template, api)
    content = RecordDict({keys[0]: arrays, keys[1]: ConfigRecord(config)})
    return content, Held(layout.digest, digest), plan_bytes


def _request_keys(
    phase: Phase, template: RecordDict, api: ClientApi
) -> tuple[str, str]:
    if api == "numpy":
        head = _NUMPY_IN[message_type(phase)]
        return f"{head}.parameters", f"{head}.config"
    arrays = next(iter(template.array_records), "arrays")
    return arrays, next(iter(template.config_records), "config")


def message_type(phase: Phase) -> str:
    """Flower's message type of a phase: exploring is training."""
    return "evaluate" if phase == "evaluate" else "train"


# --- Client: request in ---


@dataclass(frozen=True)
class Request:
    """What a node was asked, read and checked.

    Parameters
    ----------
    orders : Orders
        Phase, plan, values, and how to answer.
    digest : bytes
        Digest of the plan, to be sent back.
    config : dict
        The app's own configuration, without our keys.
    """

    orders: Orders
    digest: bytes
    config: dict[str, Any]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays of the small model."""
        return unpack_small(self.orders.values, self.orders.plan)


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
        ``context.state``; holds the last layout and plan, and is updated.

    Returns
    -------
    Request

    Raises
    ------
    WireError
        If anything about it is wrong; the message says what.
    """
    if config.get(KEY_VERSION) != VERSION:
        raise WireError(
            f"expected wire version {VERSION} from the server's AutoFlip, got "
            f"{config.get(KEY_VERSION, 'none')}; wrap the server's strategy in "
            "AutoFlip and install the same flwr-autoflip on both sides."
        )
    phase, payload = config.get(KEY_PHASE), config.get(KEY_PAYLOAD, "update")
    if phase not in ("explore", "train", "evaluate") or payload not in PAYLOADS:
        raise WireError(f"unknown phase {phase!r} or payload {payload!r}.")
    held = dict(state.config_records.get(STATE, {}))
    layout_bytes = config.get(KEY_LAYOUT, held.get(KEY_LAYOUT, b""))
    plan_bytes = config.get(KEY_PLAN, held.get(KEY_PLAN, b""))
    digest = config.get(KEY_DIGEST)
    if not layout_bytes or plan_digest(plan_bytes) != digest:
        raise WireError(
            "this node does not hold the plan whose digest the server sent; it was "
            "probably restarted. The server sends the whole plan next time."
        )
    plan = decode_plan(plan_bytes, _read_layout(layout_bytes))
    check_values(values, plan)
    if held.get(KEY_PLAN) != plan_bytes or held.get(KEY_LAYOUT) != layout_bytes:
        state[STATE] = ConfigRecord({KEY_LAYOUT: layout_bytes, KEY_PLAN: plan_bytes})
    orders = Orders(
        cast(Phase, phase),
        plan,
        values,
        str(config.get(KEY_DTYPE, "float32")),
        bool(config.get(KEY_REGROW, False)),
        cast(Payload, payload),
    )
    own = {key: v for key, v in config.items() if not key.startswith(PREFIX)}
    return Request(orders, cast(bytes, digest), own)


@lru_cache(maxsize=8)
def _read_layout(data: bytes) -> Layout:
    return layout_from_bytes(data)


# --- Client: reply out ---


def report_values(
    initial: Arrays, final: Arrays, layout: Layout, payload: Payload
) -> tuple[NDArray[np.float16], float]:
    """Turn exploring into what an explorer sends: 16 bits a value, and their scale.

    ``"deviation"`` and ``"units"`` send square roots, which halves the exponents'
    range; the server squares them.

    Parameters
    ----------
    initial, final : mapping of str to ndarray
        Dense arrays before and after.
    layout : Layout
    payload : {"update", "deviation", "units"}

    Returns
    -------
    values : ndarray
        Float16: all tensors' updates, trainable tensors' ``|update|``, or one root of
        summed deviations a unit.
    scale : float
    """
    trainable = [t.name for t in layout.tensors if t.trainable]
    if payload == "units":
        moved = {name: deviation(initial[name], final[name]) for name in trainable}
        sums = report_by_unit(layout, moved)
        return to_half(np.sqrt(np.concatenate([sums[g.name] for g in layout.groups])))
    names = [t.name for t in layout.tensors] if payload == "update" else trainable
    parts = [(final[n].astype(np.float64) - initial[n]).ravel() for n in names]
    values = np.concatenate(parts)
    return to_half(values if payload == "update" else np.abs(values))


def train_reply(
    values: NDArray[Any],
    num_examples: int,
    metrics: Mapping[str, Any],
    request: RecordDict,
) -> RecordDict:
    """Build the content of a message-API reply to ``train`` (exploring included)."""
    arrays_key = next(iter(request.array_records), "arrays")
    return RecordDict(
        {
            arrays_key: ArrayRecord({VALUES: Array(values)}),
            **_metrics_and_receipt({NUM_EXAMPLES: num_examples, **metrics}),
        }
    )


def evaluate_reply(
    loss: float, num_examples: int, metrics: Mapping[str, Any]
) -> RecordDict:
    """Build the content of a message-API reply to ``evaluate``."""
    return RecordDict(
        _metrics_and_receipt({NUM_EXAMPLES: num_examples, "loss": loss, **metrics})
    )


def _metrics_and_receipt(metrics: Mapping[str, Any]) -> dict[str, Any]:
    own, receipt = split_receipt(metrics)
    return {METRICS: MetricRecord(own), RECEIPT: ConfigRecord(receipt)}


def split_receipt(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part the app's metrics from our receipt."""
    own = {k: v for k, v in metrics.items() if not k.startswith(PREFIX)}
    return own, {k: v for k, v in metrics.items() if k.startswith(PREFIX)}


def single_array(arrays: ArrayRecord) -> NDArray[Any]:
    """Give the one flat array of a record.

    Raises
    ------
    WireError
        If there is not exactly one.
    """
    if len(arrays) != 1:
        raise WireError(f"expected one flat array, {len(arrays)} came.")
    try:
        return next(iter(arrays.values())).numpy()
    except (TypeError, ValueError, EOFError) as error:
        raise WireError(f"the array cannot be read: {error}") from error


# --- Server: reply in ---


@dataclass(frozen=True)
class Reply:
    """What a node answered, checked against what it was asked.

    Parameters
    ----------
    values : ndarray or None
        None from an evaluation.
    num_examples : float
    metrics : dict
        The app's own, numbers only.
    receipt : dict
        Our keys: parameters, examples, seconds, scale.
    """

    values: NDArray[Any] | None
    num_examples: float
    metrics: dict[str, Any]
    receipt: dict[str, Any]


def read_reply(message: Message, orders: Orders, api: ClientApi) -> Reply:
    """Read and check a reply.

    Parameters
    ----------
    message : Message
        With content, not an error.
    orders : Orders
        What this node was asked.
    api : {"message", "numpy"}

    Returns
    -------
    Reply

    Raises
    ------
    WireError
        On another plan's digest, a wrong length, NaN, or a missing weight.
    """
    content, phase = message.content, orders.phase
    metrics = _numpy_metrics(content, phase) if api == "numpy" else _metrics(content)
    own, receipt = split_receipt(metrics)
    num_examples = own.pop(NUM_EXAMPLES, None)
    if receipt.get(KEY_VERSION) != VERSION:
        raise WireError(
            f"the reply carries no receipt of wire version {VERSION}; the node must "
            "use AutoFlipClient or autoflip_mod of the same flwr-autoflip."
        )
    if receipt.get(KEY_DIGEST) != plan_digest(encode_plan(orders.plan)):
        raise WireError("the reply belongs to another plan than the one that was sent.")
    if not _is_number(num_examples) or not 0 < num_examples < np.inf:
        raise WireError(f"num-examples must be positive, got {num_examples!r}.")
    _check_receipt(receipt)
    if phase == "evaluate":
        return Reply(None, num_examples, own, receipt)
    if len(content.array_records) != 1:
        raise WireError(f"expected one ArrayRecord, {len(content.array_records)} came.")
    values = single_array(next(iter(content.array_records.values())))
    if phase == "train":
        check_values(values, orders.reply_plan)
    return Reply(values, num_examples, own, receipt)


def peek_receipt(content: RecordDict) -> dict[str, Any]:
    """Read what a refused reply says it cost; empty if that cannot be trusted."""
    receipt: dict[str, Any] = {}
    for record in content.config_records.values():
        receipt |= split_receipt(record)[1]
    try:
        _check_receipt(receipt)
    except WireError:
        return {}
    return receipt


def _metrics(content: RecordDict) -> dict[str, Any]:
    if len(content.metric_records) != 1:
        raise WireError(
            f"expected one MetricRecord, {len(content.metric_records)} came."
        )
    receipt = content.config_records.get(RECEIPT, ConfigRecord())
    return {**next(iter(content.metric_records.values())), **receipt}


def _numpy_metrics(content: RecordDict, phase: Phase) -> dict[str, Any]:
    head = _NUMPY_OUT[message_type(phase)]
    try:
        status = content.config_records[f"{head}.status"]
        if status["code"] != 0:
            raise WireError(f"the client answered with status {status['message']!r}.")
        count = content.metric_records[f"{head}.num_examples"]["num_examples"]
        metrics: dict[str, Any] = {NUM_EXAMPLES: count}
        metrics |= dict(content.config_records[f"{head}.metrics"])
        if phase == "evaluate":
            metrics["loss"] = content.metric_records[f"{head}.loss"]["loss"]
    except KeyError as error:
        raise WireError(f"the reply has no {error}; is client_api right?") from error
    kept = {k: v for k, v in metrics.items() if k.startswith(PREFIX) or _is_number(v)}
    return kept


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_receipt(receipt: Mapping[str, Any]) -> None:
    for key in (KEY_PARAMETERS, KEY_EXAMPLES, KEY_EVAL_EXAMPLES, KEY_SECONDS):
        value = receipt.get(key, 0)
        if not _is_number(value) or not 0 <= value < np.inf:
            raise WireError(f"{key} must be at least 0 and finite, got {value!r}.")


def read_report(
    reply: Reply, layout: Layout, payload: Payload, initial: Arrays
) -> tuple[Report, dict[str, NDArray[Any]] | None]:
    """Turn an explorer's reply into deviations, and into its model if it sent one.

    Parameters
    ----------
    reply : Reply
    layout : Layout
    payload : {"update", "deviation", "units"}
    initial : mapping of str to ndarray
        Dense arrays that exploring started from.

    Returns
    -------
    report : Report
        By tensor name, or by group name with ``"units"``.
    final : dict of str to ndarray or None
        The explorer's model, with ``"update"``.

    Raises
    ------
    WireError
        On a wrong length or dtype, or values that are not finite.
    """
    values, scale = reply.values, reply.receipt.get(KEY_SCALE)
    specs = [t for t in layout.tensors if payload == "update" or t.trainable]
    expected = layout.num_units if payload == "units" else sum(t.size for t in specs)
    if values is None or values.shape != (expected,) or values.dtype != np.float16:
        got = "nothing" if values is None else f"{values.dtype} {values.shape}"
        raise WireError(f"report: expected float16 ({expected},), got {got}.")
    if not _is_number(scale) or not np.isfinite(values).all():
        raise WireError("report: the scale is missing, or values are NaN or infinite.")
    moved = from_half(values, cast(float, scale))
    if not np.isfinite(moved).all():
        raise WireError("report: values overflow at this scale.")
    if payload == "units":
        return split_by_group(layout, np.square(moved)), None
    ends = np.cumsum([t.size for t in specs])[:-1]
    by_name = {
        t.name: part.reshape(t.shape)
        for t, part in zip(specs, np.split(moved, ends), strict=True)
    }
    report = {t.name: np.square(by_name[t.name]) for t in specs if t.trainable}
    if payload == "deviation":
        return report, None
    final = {t.name: (initial[t.name] + by_name[t.name]).astype(t.dtype) for t in specs}
    return report, final


def to_arrayrecord(arrays: Arrays) -> ArrayRecord:
    """Put named arrays into Flower's record."""
    return ArrayRecord({name: Array(np.asarray(a)) for name, a in arrays.items()})


def from_arrayrecord(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Take named arrays out of Flower's record."""
    return {name: array.numpy() for name, array in record.items()}


def inner_reply(
    message: Message, arrays: Arrays | None, reply: Reply, weight_key: str
) -> None:
    """Give a reply the content that the inner strategy expects, in place.

    Parameters
    ----------
    message : Message
    arrays : mapping of str to ndarray or None
        The node's model in full shape; None for an evaluation.
    reply : Reply
    weight_key : str
        The inner strategy's ``weighted_by_key``.
    """
    metrics = MetricRecord({weight_key: reply.num_examples, **reply.metrics})
    content = RecordDict({METRICS: metrics})
    if arrays is not None:
        content["arrays"] = to_arrayrecord(arrays)
    message.content = content


# --- Bytes ---


def count_bytes(content: RecordDict) -> int:
    """Count what a message's content weighs on the wire.

    The serialised size of every nested object plus its 32-byte id in the object tree,
    as Flower moves them; never a count of elements.

    Parameters
    ----------
    content : RecordDict

    Returns
    -------
    int
        Bytes.
    """
    try:
        from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    except ImportError:  # private to Flower: records' own count is within some percent
        records = (content[key] for key in content)
        return sum(record.count_bytes() for record in records if len(record))
    objects = get_all_nested_objects(content)
    return sum(len(obj.deflate()) + len(key) for key, obj in objects.items())
