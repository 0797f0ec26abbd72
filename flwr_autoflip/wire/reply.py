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
from .keys import is_number
from .metrics import usable_metrics
from .records import only_record, records_of, single_array, to_arrayrecord
from .report import ReplyReport, check_report, split_gradients

MOST = 2**53
"""Of anything that is counted: floats hold it exactly, and their sums are finite."""

MOST_NOTES, MOST_NOTE_BYTES = 1000, 1 << 20
"""Of one reply; with more of them none is handed on."""

_TYPES: dict[str, tuple[type, ...]] = {
    keys.VERSION: (int,),
    keys.DIGEST: (bytes,),
    keys.PARAMETERS: (int,),
    keys.EXAMPLES: (int, float),
    keys.EVAL_EXAMPLES: (int, float),
    keys.MACS: (int,),
    keys.EVAL_MACS: (int,),
    keys.UNCOUNTED: (str,),
    keys.SECONDS: (int, float),
    keys.SCALE: (int, float),
    keys.CHECKSUM: (int,),
    keys.BUDGET: (str,),
    keys.PRIVACY: (str,),
}
"""All that is read of a reply's metadata, and what it may be."""

_LARGEST = dict.fromkeys(
    (keys.PARAMETERS, keys.EXAMPLES, keys.EVAL_EXAMPLES, keys.SECONDS), (MOST, "2^53")
) | dict.fromkeys((keys.MACS, keys.EVAL_MACS), (2**62, "2^62"))
"""Counts are sums that floats hold; multiply-accumulates are whole everywhere."""

_COUNTED = (keys.EXAMPLES, keys.EVAL_EXAMPLES, keys.UNCOUNTED)
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
    return {keys.SCALE: scale, keys.CHECKSUM: zlib.crc32(values.tobytes())}


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
        Under our keys.
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
    """Read and check a reply of Flower's message API or its NumPy API.

    An app that exists may report its weight under ``weight_key`` alone, the inner
    strategy's ``weighted_by_key``. ``WireError`` on another plan's digest, a wrong
    length, NaN, or a missing weight. Metrics are no reason: those that nobody can
    average are left out.
    """
    metrics, metadata = _parts(message.content, instructions.phase)
    counted = weight_key if weight_key in metrics else keys.NUM_EXAMPLES
    num_examples = metrics.pop(counted, None)
    own, unusable = usable_metrics(metrics)
    if metadata.get(keys.VERSION) != VERSION:
        raise WireError(
            f"the reply carries no metadata of wire version {VERSION}; the node must "
            "use AutoFlipClient or autoflip_mod of the same flwr-autoflip."
        )
    if metadata.get(keys.DIGEST) != instructions.digest:
        raise WireError("the reply belongs to another plan than the one that was sent.")
    if not is_number(num_examples) or not 0 < num_examples <= MOST:
        raise WireError(
            f"num-examples must be positive and at most 2^53, got {num_examples!r}."
        )
    _check_metadata(metadata)
    if metadata.keys().isdisjoint(_COUNTED):  # a mod cannot count: the app's word
        kind = keys.message_type(instructions.phase)
        counted = keys.EVAL_EXAMPLES if kind == "evaluate" else keys.EXAMPLES
        metadata[counted] = int(num_examples)
    values = _read_values(message.content, instructions, metadata)
    return Reply(values[0], num_examples, own, metadata, *values[1:], unusable)


def _read_values(
    content: RecordDict, instructions: Instructions, metadata: Mapping[str, Any]
) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Read a reply's array, if there is one: values, sizes, and the sizes' norm."""
    if instructions.phase not in ("train", "explore"):
        return _NOTHING, _NOTHING, 0.0
    plan, payload = instructions.reply_plan, instructions.payload
    array = single_array(only_record(content, ArrayRecord))
    if payload == "gradients":
        return *split_gradients(array, plan), 0.0
    if payload == "values":
        return instructions.decode(array), _NOTHING, 0.0
    if metadata.get(keys.CHECKSUM) != zlib.crc32(array.tobytes()):
        raise WireError(f"the report was changed after it was made. {MOD_ORDER}")
    norm = check_report(array, metadata.get(keys.SCALE), plan, payload)
    return _NOTHING, array, norm


def report_of(reply: Reply, instructions: Instructions) -> Report:
    """Give what a checked reply shows of each weight, or of each unit.

    Name to a dense float32 array, at least 0, that is made on every lookup: squares of
    how far trainable weights are from what the server holds, in full precision; of
    summed gradients; of deviations; or, by group, of units' sums. 0 where something is
    pruned.
    """
    plan, sizes = instructions.reply_plan, reply.sizes
    if instructions.payload == "gradients":
        return ReplyReport(plan.without_mask(), lambda part: np.square(sizes[part]))
    if instructions.payload == "values":
        trained, start = reply.values, instructions.start
        return ReplyReport(
            plan, lambda part: np.square(trained[part] - start[part]), buffers=True
        )
    scale = float(reply.metadata[keys.SCALE])
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


def _parts(
    content: RecordDict, phase: keys.Phase
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give a reply's metrics, its weight among them, and its metadata."""
    head = keys.NUMPY_OUT[keys.message_type(phase)]
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
    for key, (most, shown) in _LARGEST.items():
        if not 0 <= (value := metadata.get(key, 0)) <= most:
            raise WireError(f"{key} must lie in [0, {shown}], got {value!r}.")


# --- Server: on to the inner strategy ---


def inner_reply(
    message: Message, arrays: ArrayRecord | None, reply: Reply, weight_key: str
) -> None:
    """Give a reply the content that the inner strategy expects, in place.

    ``arrays`` are what is averaged, None for an evaluation; ``weight_key`` is the inner
    strategy's ``weighted_by_key``.
    """
    metrics = MetricRecord({weight_key: reply.num_examples, **reply.metrics})
    content = RecordDict({keys.METRICS: metrics})
    if arrays is not None:
        content[keys.ARRAYS] = arrays
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
    """
    plain = instructions.encoding == FLOAT32 and instructions.payload == "values"
    if plain and reply.values.dtype == np.float32:
        (record,) = records_of(message.content, ArrayRecord).values()
        return ArrayRecord({keys.ARRAY: next(iter(record.values()))})
    return to_arrayrecord({keys.ARRAY: reply.values.astype(np.float32, copy=False)})
