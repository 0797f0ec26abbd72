"""Flower's records <-> our values, and every record key we use (wire version 1).

Down: one flat array, and the app's own config with our keys in it, layout and plan
among them. Up: one flat array, the app's metrics, and metadata of ours. The server
knows the plan, so an upload carries no mask. Neither side trusts the other: version,
digest, length, dtype and finiteness are checked before a value is used.
"""

from . import hints, keys
from .instructions import Instructions, request_content
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

__all__ = [
    "Instructions",
    "Reply",
    "Request",
    "add_metadata_inplace",
    "append_gradients",
    "common_metrics",
    "count_bytes",
    "encode_report",
    "from_arrayrecord",
    "hints",
    "inner_reply",
    "is_ours",
    "kept_values",
    "keys",
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
]
