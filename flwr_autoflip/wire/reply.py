"""Node -> server: values and a receipt, out and in."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from numpy.typing import NDArray

from ..core.codec import VERSION, encode_plan, plan_digest
from ..core.encoding import FLOAT32
from ..core.errors import WireError
from ..core.guidance import Report
from ..core.probe import split_probe
from .keys import (
    KEY_CHECKSUM,
    KEY_DIGEST,
    KEY_EVAL_EXAMPLES,
    KEY_EXAMPLES,
    KEY_PARAMETERS,
    KEY_SCALE,
    KEY_SECONDS,
    KEY_VERSION,
    METRICS,
    NOTES,
    NUM_EXAMPLES,
    NUMPY_OUT,
    PREFIX,
    RECEIPT,
    VALUES,
    ClientApi,
    Phase,
    is_number,
    message_type,
)
from .records import only_record, records_of, single_array, to_arrayrecord
from .request import Orders
from .values import decode_trained

MOST = 2**53
"""Of anything that is counted: floats hold it exactly, and their sums are finite."""

MOST_NOTES, MOST_NOTE_BYTES = 1000, 1 << 20
"""Of one reply; with more of them none is handed on."""

MOD_ORDER = (
    "An explorer's report is no weights that a clipping or noising mod could change: "
    "put that mod behind ours, mods=[autoflip_mod, ...]; around AutoFlipClient, set "
    "AutoFlip(..., exploration_payload='weights')."
)


# --- Node: out ---


def train_reply(
    values: NDArray[Any],
    num_examples: int,
    metrics: Mapping[str, Any],
    request: RecordDict,
) -> RecordDict:
    """Build the content of a message-API reply to ``train`` (exploring included)."""
    arrays_key = next(iter(records_of(request, ArrayRecord)), "arrays")
    return RecordDict(
        {
            arrays_key: to_arrayrecord({VALUES: values}),
            **_metrics_and_receipt({NUM_EXAMPLES: num_examples, **metrics}),
        }
    )


def numpy_train_reply(num_examples: int, metrics: Mapping[str, Any]) -> RecordDict:
    """Build what Flower's NumPyClient adapter answers to ``train``, without values."""
    head = NUMPY_OUT["train"]
    return RecordDict(
        {
            f"{head}.parameters": ArrayRecord(),
            f"{head}.num_examples": MetricRecord({"num_examples": num_examples}),
            f"{head}.metrics": ConfigRecord(dict(metrics)),
            f"{head}.status": ConfigRecord({"code": 0, "message": ""}),
        }
    )


def add_receipt_inplace(content: RecordDict, receipt: Mapping[str, Any]) -> None:
    """Put a receipt into an app's own reply, where the server looks for it."""
    places = [f"{head}.metrics" for head in NUMPY_OUT.values()]
    place = next((key for key in places if key in content), RECEIPT)
    own = records_of(content, ConfigRecord).get(place, ConfigRecord())
    content[place] = ConfigRecord({**own, **receipt})


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


def seal_report(values: NDArray[Any], scale: float) -> dict[str, Any]:
    """Give a report's part of the receipt: its scale, and a checksum of its values."""
    return {KEY_SCALE: scale, KEY_CHECKSUM: zlib.crc32(values.tobytes())}


def split_receipt(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part the app's metrics from our receipt."""
    own = {k: v for k, v in metrics.items() if not k.startswith(PREFIX)}
    return own, {k: v for k, v in metrics.items() if k.startswith(PREFIX)}


# --- Server: in ---


@dataclass(frozen=True)
class Reply:
    """What a node answered, checked against what it was asked.

    Parameters
    ----------
    values : ndarray
        Empty from an evaluation, and from a node that says what it can carry.
    num_examples : float
    metrics : dict
        The app's own, numbers only.
    receipt : dict
        Our keys: parameters, examples, seconds, scale, budget.
    probe : Report (default: empty)
        Squared gradients, if they were asked for.
    """

    values: NDArray[Any]
    num_examples: float
    metrics: dict[str, Any]
    receipt: dict[str, Any]
    probe: Report = field(default_factory=dict)


def read_reply(
    message: Message, orders: Orders, api: ClientApi, weight_key: str = NUM_EXAMPLES
) -> Reply:
    """Read and check a reply.

    Parameters
    ----------
    message : Message
        With content, not an error.
    orders : Orders
        What this node was asked.
    api : {"message", "numpy"}
    weight_key : str (default: "num-examples")
        The inner strategy's ``weighted_by_key``: an app that exists may report its
        weight under that name only.

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
    num_examples = own.pop(weight_key if weight_key in own else NUM_EXAMPLES, None)
    if receipt.get(KEY_VERSION) != VERSION:
        raise WireError(
            f"the reply carries no receipt of wire version {VERSION}; the node must "
            "use AutoFlipClient or autoflip_mod of the same flwr-autoflip."
        )
    if receipt.get(KEY_DIGEST) != plan_digest(
        encode_plan(orders.plan), orders.plan.layout
    ):
        raise WireError("the reply belongs to another plan than the one that was sent.")
    if not is_number(num_examples) or not 0 < num_examples <= MOST:
        raise WireError(
            f"num-examples must be positive and at most 2^53, got {num_examples!r}."
        )
    _check_receipt(receipt)
    if KEY_EXAMPLES not in receipt and KEY_EVAL_EXAMPLES not in receipt:
        counted = KEY_EVAL_EXAMPLES if phase == "evaluate" else KEY_EXAMPLES
        receipt[counted] = int(num_examples)  # a mod cannot count: the app's word
    if phase in ("budget", "evaluate"):
        return Reply(np.zeros(0), num_examples, own, receipt)
    values = single_array(only_record(content, ArrayRecord))
    if orders.probe:
        trained, probe = split_probe(values, orders.reply_plan)
        return Reply(trained, num_examples, own, receipt, probe)
    if phase == "train":
        values = decode_trained(orders, values)
    elif orders.payload != "weights":
        _check_seal(values, receipt)
    return Reply(values, num_examples, own, receipt)


def peek_receipt(content: RecordDict) -> dict[str, Any]:
    """Read what a refused reply says it cost; empty if that cannot be trusted."""
    receipt: dict[str, Any] = {}
    for record in records_of(content, ConfigRecord).values():
        receipt |= split_receipt(record)[1]
    try:
        _check_receipt(receipt)
    except WireError:
        return {}
    return receipt


def _metrics(content: RecordDict) -> dict[str, Any]:
    metrics = only_record(content, MetricRecord)
    receipt = records_of(content, ConfigRecord).get(RECEIPT, ConfigRecord())
    return {**metrics, **receipt}


def _numpy_metrics(content: RecordDict, phase: Phase) -> dict[str, Any]:
    head = NUMPY_OUT[message_type(phase)]
    configs = records_of(content, ConfigRecord)
    numbers = records_of(content, MetricRecord)
    try:
        status = configs[f"{head}.status"]
        if status["code"] != 0:
            raise WireError(f"the client answered with status {status['message']!r}.")
        # Beside the number stands what Flower's mods add, such as "norm_bit".
        metrics: dict[str, Any] = dict(numbers[f"{head}.num_examples"])
        metrics[NUM_EXAMPLES] = metrics.pop("num_examples")
        metrics |= dict(configs[f"{head}.metrics"])
        if phase == "evaluate":
            metrics["loss"] = numbers[f"{head}.loss"]["loss"]
    except KeyError as error:
        raise WireError(f"the reply has no {error}; is client_api right?") from error
    kept = {k: v for k, v in metrics.items() if k.startswith(PREFIX) or is_number(v)}
    return kept


def _check_receipt(receipt: Mapping[str, Any]) -> None:
    for key in (KEY_PARAMETERS, KEY_EXAMPLES, KEY_EVAL_EXAMPLES, KEY_SECONDS):
        value = receipt.get(key, 0)
        if not is_number(value) or not 0 <= value <= MOST:
            raise WireError(f"{key} must lie in [0, 2^53], got {value!r}.")


def _check_seal(values: NDArray[Any], receipt: Mapping[str, Any]) -> None:
    if receipt.get(KEY_CHECKSUM) != zlib.crc32(values.tobytes()):
        raise WireError(f"the report was changed after it was made. {MOD_ORDER}")


def inner_reply(
    message: Message, arrays: ArrayRecord | None, reply: Reply, weight_key: str
) -> None:
    """Give a reply the content that the inner strategy expects, in place.

    Parameters
    ----------
    message : Message
    arrays : ArrayRecord or None
        What is averaged; None for an evaluation.
    reply : Reply
    weight_key : str
        The inner strategy's ``weighted_by_key``.
    """
    metrics = MetricRecord({weight_key: reply.num_examples, **reply.metrics})
    content = RecordDict({METRICS: metrics})
    if arrays is not None:
        content["arrays"] = arrays
    if notes := _notes(message.content):
        content[NOTES] = ConfigRecord(notes)
    message.content = content


def _notes(content: RecordDict) -> dict[str, Any]:
    """Give what a NumPyClient says beside numbers, for strategies of the older API."""
    said: dict[str, Any] = {}
    for head in NUMPY_OUT.values():
        said |= records_of(content, ConfigRecord).get(f"{head}.metrics", {})
    own, _ = split_receipt(said)
    notes = {k: v for k, v in own.items() if isinstance(v, (str, bytes, bool))}
    size = sum(len(k) + len(v) for k, v in notes.items() if not isinstance(v, bool))
    return notes if len(notes) <= MOST_NOTES and size <= MOST_NOTE_BYTES else {}


def kept_values(message: Message, reply: Reply, orders: Orders) -> ArrayRecord:
    """Give a reply's kept values as float32 in one array: as they came, if they are.

    Under our own name, whatever the node's was: names that differ end a run.

    Parameters
    ----------
    message : Message
        As it came.
    reply : Reply
    orders : Orders
        What the node was asked.

    Returns
    -------
    ArrayRecord
    """
    if orders.reply_encoding == FLOAT32 and reply.values.dtype == np.float32:
        (record,) = records_of(message.content, ArrayRecord).values()
        if not orders.probe:
            return ArrayRecord({VALUES: next(iter(record.values()))})
    return to_arrayrecord({VALUES: reply.values.astype(np.float32, copy=False)})
