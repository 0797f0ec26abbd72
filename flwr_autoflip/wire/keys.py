"""Every record key of wire version 1, and the phases they speak of."""

from importlib.metadata import version
from typing import Any, Literal

Phase = Literal["budget", "explore", "train", "evaluate"]
ClientApi = Literal["message", "numpy"]

PACKAGE_VERSION = version("flwr-autoflip")
"""Which server and nodes must agree on."""

PREFIX = "autoflip-"
KEY_VERSION = "autoflip-version"
KEY_PACKAGE = "autoflip-package"
KEY_PHASE = "autoflip-phase"
KEY_LAYOUT = "autoflip-layout"
KEY_PLAN = "autoflip-plan"
KEY_DIGEST = "autoflip-plan-digest"
KEY_PAYLOAD = "autoflip-payload"
KEY_CHANGE = "autoflip-plan-change"
KEY_DTYPE = "autoflip-dtype"
KEY_COMPRESS = "autoflip-compress"
KEY_REGROW = "autoflip-regrow"
KEY_BUDGET = "autoflip-budget"
KEY_PROBE = "autoflip-probe"
KEY_ANSWERING = "autoflip-answering"
KEY_SCALE = "autoflip-scale"
KEY_PRIVACY = "autoflip-privacy"
KEY_CHECKSUM = "autoflip-checksum"
KEY_PARAMETERS = "autoflip-parameters"
KEY_EXAMPLES = "autoflip-examples"
KEY_EVAL_EXAMPLES = "autoflip-eval-examples"
KEY_MACS = "autoflip-macs"
KEY_EVAL_MACS = "autoflip-eval-macs"
KEY_UNCOUNTED = "autoflip-uncounted"
KEY_SECONDS = "autoflip-seconds"

VALUES = "values"
STATE = "autoflip"
RESIDUAL = "autoflip-residual"
RELEASED = "autoflip-released"
RECEIPT = "autoflip"
METRICS = "metrics"
NOTES = "notes"
NUM_EXAMPLES = "num-examples"

# What Flower's NumPyClient adapter reads and writes.
NUMPY_IN = {"train": "fitins", "evaluate": "evaluateins"}
NUMPY_OUT = {"train": "fitres", "evaluate": "evaluateres"}
NUMPY_ARRAY = "0"


def message_type(phase: Phase) -> str:
    """Flower's message type of a phase: whatever is no evaluation is training."""
    return "evaluate" if phase == "evaluate" else "train"


def is_numpy_key(name: str) -> bool:
    """Tell whether a record's key is one that Flower's NumPyClient adapter reads."""
    return name.partition(".")[0] in NUMPY_IN.values()


def is_number(value: Any) -> bool:
    """Tell an int or float from everything else, bool included."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
