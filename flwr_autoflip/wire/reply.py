"""Node -> server: values and metadata, out and in."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from ..errors import WireError
from ..graph.codec import VERSION
from ..methods.guidance import Report, split_by_group
from . import keys
from .encoding import FLOAT32, from_half
from .hints import MOD_ORDER
from .instructions import Instructions
from .keys import Phase, is_number, message_type
from .metrics import usable_metrics
from .records import only_record, records_of, single_array, to_arrayrecord
from .report import ReplyReport, check_report, split_gradients
from .values import decode_trained

MOST = 2**53
"""Of anything that is counted: floats hold it exactly, and their sums are finite."""

MOST_MACS = 2**62
"""Of multiply-accumulates, which are whole numbers everywhere."""

MOST_NOTES, MOST_NOTE_BYTES = 1000, 1 << 20
"""Of one reply; with more of them none is handed on."""

_TYPES: dict[str, tuple[type, ...]] = {
    keys.KEY_VERSION: (int,),
    keys.KEY_DIGEST: (bytes,),
    keys.KEY_PARAMETERS: (int,),
    keys.KEY_EXAMPLES: (int, float),
    keys.KEY_EVAL_EXAMPLES: (int, float),
    keys.KEY_MACS: (int,),
    keys.KEY_EVAL_MACS: (int,),
    keys.KEY_UNCOUNTED: (str,),
    keys.KEY_SECONDS: (int, float),
    keys.KEY_SCALE: (int, float),
    keys.KEY_CHECKSUM: (int,),
    keys.KEY_BUDGET: (str,),
    keys.KEY_PRIVACY: (str,),
}
"""All that is read of a reply's metadata, and what it may be."""

_COUNTS = (
    keys.KEY_PARAMETERS,
    keys.KEY_EXAMPLES,
    keys.KEY_EVAL_EXAMPLES,
    keys.KEY_SECONDS,
)
_NOTHING = np.zeros(0, np.float32)


# --- Node: out ---


def reply_content(
    metrics: Mapping[str, Any],
    metadata: Mapping[str, Any],
    values: NDArray[Any] | None = None,
) -> RecordDict:
    """Build the content of a reply; without values, of an evaluation's."""
    content = RecordDict()
    if values is not None:
        content[keys.ARRAYS] = to_arrayrecord({keys.ARRAY: values})
    content[keys.METRICS] = MetricRecord(dict(metrics))
    content[keys.METADATA] = ConfigRecord(dict(metadata))
    return content


def add_metadata_inplace(content: RecordDict, metadata: Mapping[str, Any]) -> None:
    """Put metadata into an app's own reply, where the server looks for it."""
    places = [f"{head}.metrics" for head in keys.NUMPY_OUT.values()]
    place = next((key for key in places if key in content), keys.METADATA)
    own = records_of(content, ConfigRecord).get(place, ConfigRecord())
    content[place] = ConfigRecord({**own, **metadata})


def seal_report(values: NDArray[Any], scale: float) -> dict[str, Any]:
    """Give a report's part of the metadata: its scale, a checksum of its values."""
    return {keys.KEY_SCALE: scale, keys.KEY_CHECKSUM: zlib.crc32(values.tobytes())}


# --- Server: in ---


@dataclass(frozen=True)
class Reply:
    """What a node answered, checked against what it was asked.

    Parameters
    ----------
    values : ndarray
        What it trained, ``(reply_plan.num_values,)``; else empty.
    num_examples : float
    metrics : dict
        The app's own, those that can be averaged; see :mod:`.metrics`.
    metadata : dict
        Under our keys: parameters, examples, seconds, scale, budget.
    sizes : ndarray (default: empty)
        What came beside or instead of values, as it came; see :mod:`.report`.
    norm : float (default: 0)
        L2 norm of what moved, of a node that explored.
    unusable : str (default: "")
        Which of the app's metrics were left out, and why.
    """

    values: NDArray[Any]
    num_examples: float
    metrics: dict[str, Any]
    metadata: dict[str, Any]
    sizes: NDArray[Any] = field(default_factory=lambda: _NOTHING)
    norm: float = 0.0
    unusable: str = ""


def read_reply(
    message: Message, instructions: Instructions, weight_key: str = keys.NUM_EXAMPLES
) -> Reply:
    """Read and check a reply.

    Parameters
    ----------
    message : Message
        With content, not an error; of Flower's message API or its NumPy API.
    instructions : Instructions
        What this node was asked.
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
    content, phase, payload = message.content, instructions.phase, instructions.payload
    metrics, metadata = _parts(content, phase)
    counted = weight_key if weight_key in metrics else keys.NUM_EXAMPLES
    num_examples = metrics.pop(counted, None)
    own, unusable = usable_metrics(metrics)
    if metadata.get(keys.KEY_VERSION) != VERSION:
        raise WireError(
            f"the reply carries no metadata of wire version {VERSION}; the node must "
            "use AutoFlipClient or autoflip_mod of the same flwr-autoflip."
        )
    if metadata.get(keys.KEY_DIGEST) != instructions.digest:
        raise WireError("the reply belongs to another plan than the one that was sent.")
    if not is_number(num_examples) or not 0 < num_examples <= MOST:
        raise WireError(
            f"num-examples must be positive and at most 2^53, got {num_examples!r}."
        )
    _check_metadata(metadata)
    if not {keys.KEY_EXAMPLES, keys.KEY_EVAL_EXAMPLES, keys.KEY_UNCOUNTED} & set(
        metadata
    ):
        counted = keys.KEY_EVAL_EXAMPLES if phase == "evaluate" else keys.KEY_EXAMPLES
        metadata[counted] = int(num_examples)  # a mod cannot count: the app's word
    values, sizes, norm = _NOTHING, _NOTHING, 0.0
    if phase in ("train", "explore"):
        values = single_array(only_record(content, ArrayRecord))
    if payload == "gradients":
        values, sizes = split_gradients(values, instructions.reply_plan)
    elif phase == "train":
        values = decode_trained(instructions, values)
    elif phase == "explore":
        if metadata.get(keys.KEY_CHECKSUM) != zlib.crc32(values.tobytes()):
            raise WireError(f"the report was changed after it was made. {MOD_ORDER}")
        scale = metadata.get(keys.KEY_SCALE)
        norm = check_report(values, scale, instructions.reply_plan, payload)
        values, sizes = _NOTHING, values
    return Reply(values, num_examples, own, metadata, sizes, norm, unusable)


def report_of(reply: Reply, instructions: Instructions) -> Report:
    """Give what a reply shows of each weight, or of each unit.

    Parameters
    ----------
    reply : Reply
        From :func:`read_reply`, which has checked it.
    instructions : Instructions
        What its node was asked.

    Returns
    -------
    Report
        Name to a dense float32 array, at least 0, that is made on every lookup:
        squares of how far trainable weights are from what the server holds, in full
        precision; of summed gradients; of deviations; or, by group, of units' sums. 0
        where something is pruned.
    """
    plan, sizes = instructions.reply_plan, reply.sizes
    if instructions.payload == "gradients":
        return ReplyReport(plan.without_mask(), lambda part: np.square(sizes[part]))
    if instructions.phase == "train":
        trained, start = reply.values, instructions.start
        return ReplyReport(
            plan, lambda part: np.square(trained[part] - start[part]), buffers=True
        )
    scale = float(reply.metadata[keys.KEY_SCALE])
    if instructions.payload == "units":
        return split_by_group(plan.layout, np.square(from_half(sizes, scale)))
    return ReplyReport(plan, lambda part: np.square(from_half(sizes[part], scale)))


def peek_metadata(content: RecordDict) -> dict[str, Any]:
    """Read what a refused reply says it cost; empty if that cannot be trusted."""
    metadata: dict[str, Any] = {}
    try:
        for record in records_of(content, ConfigRecord).values():
            metadata |= _read_metadata(record)
        _check_metadata(metadata)
    except WireError:
        return {}
    return metadata


def _read_metadata(record: Mapping[str, Any]) -> dict[str, Any]:
    """Take our own keys, and no others, whatever else a record holds."""
    metadata = {key: record[key] for key in _TYPES if key in record}
    for key, value in metadata.items():
        if type(value) not in _TYPES[key]:
            names = " or ".join(kind.__name__ for kind in _TYPES[key])
            raise WireError(f"{key} must be {names}, got {type(value).__name__}.")
    return metadata


def _parts(content: RecordDict, phase: Phase) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give a reply's metrics, its weight among them, and its metadata."""
    head = keys.NUMPY_OUT[message_type(phase)]
    configs = records_of(content, ConfigRecord)
    if f"{head}.status" not in configs:
        metrics = only_record(content, MetricRecord)
        return dict(metrics), _read_metadata(configs.get(keys.METADATA, ConfigRecord()))
    numbers, status = records_of(content, MetricRecord), configs[f"{head}.status"]
    try:
        if status["code"] != 0:
            raise WireError(f"the client answered with status {status['message']!r}.")
        # Beside the number stands what Flower's mods add, such as "norm_bit".
        own, given = configs[f"{head}.metrics"], dict(numbers[f"{head}.num_examples"])
        found: dict[str, Any] = {**given, keys.NUM_EXAMPLES: given["num_examples"]}
        if phase == "evaluate":
            found["loss"] = numbers[f"{head}.loss"]["loss"]
    except KeyError as error:
        raise WireError(f"the reply has no {error}.") from error
    del found["num_examples"]
    # Such apps may say words, which Flower's strategies do not average either.
    said = {k: v for k, v in own.items() if k not in _TYPES and is_number(v)}
    return {**said, **found}, _read_metadata(own)


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for key in _COUNTS:
        value = metadata.get(key, 0)
        if not is_number(value) or not 0 <= value <= MOST:
            raise WireError(f"{key} must lie in [0, 2^53], got {value!r}.")
    for key in (keys.KEY_MACS, keys.KEY_EVAL_MACS):
        if not 0 <= (value := metadata.get(key, 0)) <= MOST_MACS:
            raise WireError(f"{key} must lie in [0, 2^62], got {value!r}.")


# --- Server: on to the inner strategy ---


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
    content = RecordDict({keys.METRICS: metrics})
    if arrays is not None:
        content["arrays"] = arrays
    if notes := _notes(message.content):
        content[keys.NOTES] = ConfigRecord(notes)
    message.content = content


def _notes(content: RecordDict) -> dict[str, Any]:
    """Give what a NumPyClient says beside numbers, for strategies of the legacy API."""
    said: dict[str, Any] = {}
    for head in keys.NUMPY_OUT.values():
        said |= records_of(content, ConfigRecord).get(f"{head}.metrics", {})
    notes = {
        key: value
        for key, value in said.items()
        if isinstance(value, (str, bytes, bool)) and not key.startswith(keys.PREFIX)
    }
    size = sum(len(k) + len(v) for k, v in notes.items() if not isinstance(v, bool))
    return notes if len(notes) <= MOST_NOTES and size <= MOST_NOTE_BYTES else {}


def replace_values_inplace(message: Message, values: NDArray[Any]) -> None:
    """Put other values into a reply's one array."""
    (key,) = records_of(message.content, ArrayRecord)
    message.content[key] = to_arrayrecord({keys.ARRAY: values})


def kept_values(
    message: Message, reply: Reply, instructions: Instructions
) -> ArrayRecord:
    """Give a reply's kept values as float32 in one array: as they came, if they are.

    Under our own name, whatever the node's was: names that differ end a run.

    Parameters
    ----------
    message : Message
        As it came.
    reply : Reply
    instructions : Instructions
        What the node was asked.

    Returns
    -------
    ArrayRecord
    """
    plain = instructions.encoding == FLOAT32 and instructions.payload == "values"
    if plain and reply.values.dtype == np.float32:
        (record,) = records_of(message.content, ArrayRecord).values()
        return ArrayRecord({keys.ARRAY: next(iter(record.values()))})
    return to_arrayrecord({keys.ARRAY: reply.values.astype(np.float32, copy=False)})
