"""Flower's records <-> our values, and every record key we use (wire version 1).

Down: one flat array, and the app's own config with our keys in it, layout and plan
among them. Up: one flat array, the app's metrics, and metadata of ours. The server
knows the plan, so an upload carries no mask. Neither side trusts the other: version,
digest, length, dtype and finiteness are checked before a value is used.
"""

from .hints import MOD_ORDER, SECURE_AGGREGATION, with_way_out
from .instructions import Instructions, request_content
from .keys import (
    ARRAY,
    KEY_BUDGET,
    KEY_DIGEST,
    KEY_EVAL_EXAMPLES,
    KEY_EVAL_MACS,
    KEY_EXAMPLES,
    KEY_MACS,
    KEY_PARAMETERS,
    KEY_PRIVACY,
    KEY_SECONDS,
    KEY_UNCOUNTED,
    KEY_VERSION,
    METADATA,
    METRICS,
    NOTES,
    NUM_EXAMPLES,
    PREFIX,
    RELEASED,
    RESIDUAL,
    STATE,
    Phase,
    message_type,
    numpy_names,
)
from .metrics import common_metrics
from .records import from_arrayrecord, records_of, single_array, to_arrayrecord
from .reply import (
    Reply,
    add_metadata_inplace,
    inner_reply,
    kept_values,
    peek_metadata,
    read_reply,
    replace_values_inplace,
    reply_content,
    report_of,
    seal_report,
)
from .report import append_gradients, encode_report
from .request import Request, is_ours, read_request
from .size import count_bytes
from .values import encode_trained

__all__ = [
    "ARRAY",
    "KEY_BUDGET",
    "KEY_DIGEST",
    "KEY_EVAL_EXAMPLES",
    "KEY_EVAL_MACS",
    "KEY_EXAMPLES",
    "KEY_MACS",
    "KEY_PARAMETERS",
    "KEY_PRIVACY",
    "KEY_SECONDS",
    "KEY_UNCOUNTED",
    "KEY_VERSION",
    "METADATA",
    "METRICS",
    "MOD_ORDER",
    "NOTES",
    "NUM_EXAMPLES",
    "PREFIX",
    "RELEASED",
    "RESIDUAL",
    "SECURE_AGGREGATION",
    "STATE",
    "Instructions",
    "Phase",
    "Reply",
    "Request",
    "add_metadata_inplace",
    "append_gradients",
    "common_metrics",
    "count_bytes",
    "encode_report",
    "encode_trained",
    "from_arrayrecord",
    "inner_reply",
    "is_ours",
    "kept_values",
    "message_type",
    "numpy_names",
    "peek_metadata",
    "read_reply",
    "read_request",
    "records_of",
    "replace_values_inplace",
    "reply_content",
    "report_of",
    "request_content",
    "seal_report",
    "single_array",
    "to_arrayrecord",
    "with_way_out",
]
