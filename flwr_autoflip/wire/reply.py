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

from ..errors import WireError
from ..graph.codec import VERSION, encode_plan, plan_digest
from ..methods.guidance import Report
from .encoding import FLOAT32
from .keys import (
    KEY_BUDGET,
    KEY_CHECKSUM,
    KEY_DIGEST,
    KEY_EVAL_EXAMPLES,
    KEY_EVAL_MACS,
    KEY_EXAMPLES,
    KEY_MACS,
    KEY_PARAMETERS,
    KEY_PRIVACY,
    KEY_SCALE,
    KEY_SECONDS,
    KEY_UNCOUNTED,
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
from .metrics import usable_metrics
from .probe import split_probe
from .records import only_record, records_of, single_array, to_arrayrecord
from .request import Orders
from .values import decode_trained

MOST = 2**53
"""Of anything that is counted: floats hold it exactly, and their sums are finite."""

MOST_MACS = 2**62
"""Of multiply-accumulates, which are whole numbers everywhere."""

MOST_NOTES, MOST_NOTE_BYTES = 1000, 1 << 20
"""Of one reply; with more of them none is handed on."""

MOD_ORDER = (
    "An explorer's report is no weights that a clipping or noising mod could change: "
    "put that mod behind ours, mods=[autoflip_mod, ...]; around AutoFlipClient, set "
    "AutoFlip(..., exploration_payload='weights')."
)

RECEIPT_TYPES: dict[str, tuple[type, ...]] = {
    KEY_VERSION: (int,),
    KEY_DIGEST: (bytes,),
    KEY_PARAMETERS: (int,),
    KEY_EXAMPLES: (int, float),
    KEY_EVAL_EXAMPLES: (int, float),
    KEY_MACS: (int,),
    KEY_EVAL_MACS: (int,),
    KEY_UNCOUNTED: (str,),
    KEY_SECONDS: (int, float),
    KEY_SCALE: (int, float),
    KEY_CHECKSUM: (int,),
    KEY_BUDGET: (str,),
    KEY_PRIVACY: (str,),
}
"""All that is read of a receipt, and what it may be."""


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
        The app's own, those that can be averaged; see :mod:`.metrics`.
    receipt : dict
        Our keys: parameters, examples, seconds, scale, budget.
    probe : Report (default: empty)
        Squared gradients, if they were asked for.
    unusable : str (default: "")
        Which of the app's metrics were left out, and why.
    """

    values: NDArray[Any]
    num_examples: float
    metrics: dict[str, Any]
    receipt: dict[str, Any]
    probe: Report = field(default_factory=dict)
    unusable: str = ""


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
        On another plan's digest, a wrong length, NaN, or a missing weight. Metrics
        are no reason: those that nobody can average are left out.
    """
    content, phase = message.content, orders.phase
    metrics, receipt = (_numpy_parts if api == "numpy" else _parts)(content, phase)
    counted = weight_key if weight_key in metrics else NUM_EXAMPLES
    num_examples = metrics.pop(counted, None)
    own, unusable = usable_metrics(metrics)
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
    if not {KEY_EXAMPLES, KEY_EVAL_EXAMPLES, KEY_UNCOUNTED} & set(receipt):
        counted = KEY_EVAL_EXAMPLES if phase == "evaluate" else KEY_EXAMPLES
        receipt[counted] = int(num_examples)  # a mod cannot count: the app's word
    if phase in ("budget", "evaluate"):
        return Reply(np.zeros(0), num_examples, own, receipt, unusable=unusable)
    values = single_array(only_record(content, ArrayRecord))
    if orders.probe:
        trained, probe = split_probe(values, orders.reply_plan)
        return Reply(trained, num_examples, own, receipt, probe, unusable)
    if phase == "train":
        values = decode_trained(orders, values)
    elif orders.payload != "weights":
        _check_seal(values, receipt)
    return Reply(values, num_examples, own, receipt, unusable=unusable)


def peek_receipt(content: RecordDict) -> dict[str, Any]:
    """Read what a refused reply says it cost; empty if that cannot be trusted."""
    receipt: dict[str, Any] = {}
    try:
        for record in records_of(content, ConfigRecord).values():
            receipt |= _read_receipt(record)
        _check_receipt(receipt)
    except WireError:
        return {}
    return receipt


def _read_receipt(record: ConfigRecord) -> dict[str, Any]:
    """Take our own keys, and no others, whatever else a record holds."""
    receipt = {key: record[key] for key in RECEIPT_TYPES if key in record}
    for key, value in receipt.items():
        if type(value) not in RECEIPT_TYPES[key]:
            names = " or ".join(kind.__name__ for kind in RECEIPT_TYPES[key])
            raise WireError(f"{key} must be {names}, got {type(value).__name__}.")
    return receipt


def _parts(content: RecordDict, phase: Phase) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give a reply's metrics, its weight among them, and its receipt."""
    metrics = only_record(content, MetricRecord)
    receipt = records_of(content, ConfigRecord).get(RECEIPT, ConfigRecord())
    return dict(metrics.items()), _read_receipt(receipt)


def _numpy_parts(
    content: RecordDict, phase: Phase
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the same of what Flower's NumPyClient adapter answers."""
    head = NUMPY_OUT[message_type(phase)]
    configs = records_of(content, ConfigRecord)
    numbers = records_of(content, MetricRecord)
    try:
        status = configs[f"{head}.status"]
        if status["code"] != 0:
            raise WireError(f"the client answered with status {status['message']!r}.")
        # Beside the number stands what Flower's mods add, such as "norm_bit".
        metrics: dict[str, Any] = dict(numbers[f"{head}.num_examples"].items())
        metrics[NUM_EXAMPLES] = metrics.pop("num_examples")
        own = configs[f"{head}.metrics"]
        if phase == "evaluate":
            metrics["loss"] = numbers[f"{head}.loss"]["loss"]
    except KeyError as error:
        raise WireError(f"the reply has no {error}; is client_api right?") from error
    # Such apps may say words, which Flower's strategies do not average either.
    said = {k: v for k, v in own.items() if k not in RECEIPT_TYPES and is_number(v)}
    return {**said, **metrics}, _read_receipt(own)


def _check_receipt(receipt: Mapping[str, Any]) -> None:
    for key in (KEY_PARAMETERS, KEY_EXAMPLES, KEY_EVAL_EXAMPLES, KEY_SECONDS):
        value = receipt.get(key, 0)
        if not is_number(value) or not 0 <= value <= MOST:
            raise WireError(f"{key} must lie in [0, 2^53], got {value!r}.")
    for key in (KEY_MACS, KEY_EVAL_MACS):
        if not 0 <= (value := receipt.get(key, 0)) <= MOST_MACS:
            raise WireError(f"{key} must lie in [0, 2^62], got {value!r}.")


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


def replace_values_inplace(message: Message, values: NDArray[Any]) -> None:
    """Put other values into a reply's one array."""
    (key,) = records_of(message.content, ArrayRecord)
    message.content[key] = to_arrayrecord({VALUES: values})


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
