"""Flower's records <-> core values, and every record key we use (wire version 1).

Down: one ArrayRecord with one flat Array, and the app's own ConfigRecord with our keys
in it. Up: one flat Array (gradients behind the values in a round that probes), the
app's MetricRecord, and a receipt. The server knows the plan, so an upload carries no
mask. Neither side trusts the other: version, digest, length, dtype and finiteness are
checked before a value is used.
"""

from .hints import SECURE_AGGREGATION, with_way_out
from .keys import (
    KEY_ANSWERING,
    KEY_BUDGET,
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
    NOTES,
    NUM_EXAMPLES,
    NUMPY_ARRAY,
    PREFIX,
    RECEIPT,
    RELEASED,
    RESIDUAL,
    STATE,
    VALUES,
    ClientApi,
    Phase,
    is_numpy_key,
    message_type,
)
from .metrics import common_metrics
from .node import Request, is_ours, read_request
from .records import (
    check_single,
    from_arrayrecord,
    records_of,
    single_array,
    to_arrayrecord,
)
from .reply import (
    MOD_ORDER,
    Reply,
    add_receipt_inplace,
    evaluate_reply,
    inner_reply,
    kept_values,
    numpy_train_reply,
    peek_receipt,
    read_reply,
    replace_values_inplace,
    seal_report,
    train_reply,
)
from .request import Held, Orders, request_content
from .size import count_bytes
from .values import encode_trained, starting_values

__all__ = [
    "KEY_ANSWERING",
    "KEY_BUDGET",
    "KEY_DIGEST",
    "KEY_EVAL_EXAMPLES",
    "KEY_EVAL_MACS",
    "KEY_EXAMPLES",
    "KEY_MACS",
    "KEY_PARAMETERS",
    "KEY_PRIVACY",
    "KEY_SCALE",
    "KEY_SECONDS",
    "KEY_UNCOUNTED",
    "KEY_VERSION",
    "MOD_ORDER",
    "NOTES",
    "NUMPY_ARRAY",
    "NUM_EXAMPLES",
    "PREFIX",
    "RECEIPT",
    "RELEASED",
    "RESIDUAL",
    "SECURE_AGGREGATION",
    "STATE",
    "VALUES",
    "ClientApi",
    "Held",
    "Orders",
    "Phase",
    "Reply",
    "Request",
    "add_receipt_inplace",
    "check_single",
    "common_metrics",
    "count_bytes",
    "encode_trained",
    "evaluate_reply",
    "from_arrayrecord",
    "inner_reply",
    "is_numpy_key",
    "is_ours",
    "kept_values",
    "message_type",
    "numpy_train_reply",
    "peek_receipt",
    "read_reply",
    "read_request",
    "records_of",
    "replace_values_inplace",
    "request_content",
    "seal_report",
    "single_array",
    "starting_values",
    "to_arrayrecord",
    "train_reply",
    "with_way_out",
]
