"""Every record key of wire version 1, and the phases they speak of."""

from importlib.metadata import version
from typing import Any, Literal

Phase = Literal["budget", "explore", "train", "evaluate"]

PACKAGE_VERSION = version("flwr-autoflip")
"""Which server and nodes must agree on."""

PREFIX = "autoflip-"
KEY_VERSION = "autoflip-version"
KEY_PACKAGE = "autoflip-package"
KEY_PHASE = "autoflip-phase"
KEY_RUN = "autoflip-run"
KEY_LAYOUT = "autoflip-layout"
KEY_PLAN = "autoflip-plan"
KEY_DIGEST = "autoflip-plan-digest"
KEY_PAYLOAD = "autoflip-payload"
KEY_DTYPE = "autoflip-dtype"
KEY_REGROW = "autoflip-regrow"
KEY_BUDGET = "autoflip-budget"
KEY_ANSWERING = "autoflip-answering"
KEY_ARRAYS_NAME = "autoflip-arrays-name"
KEY_CONFIG_NAME = "autoflip-config-name"
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

# Records in ``context.state``.
STATE = "autoflip"
RESIDUAL = "autoflip-residual"
RELEASED = "autoflip-released"

# Records of a message.
ARRAYS = "arrays"
CONFIG = "config"
METADATA = "autoflip"
METRICS = "metrics"
NOTES = "notes"
NUM_EXAMPLES = "num-examples"
ARRAY = "0"
"""Name of the one array, both ways: Flower's clipping mods demand equal names."""

# What Flower's NumPyClient adapter reads and writes, by message type.
NUMPY_IN = {"train": "fitins", "evaluate": "evaluateins"}
NUMPY_OUT = {"train": "fitres", "evaluate": "evaluateres"}


def message_type(phase: Phase) -> str:
    """Flower's message type of a phase: whatever is no evaluation is training."""
    return "evaluate" if phase == "evaluate" else "train"


def numpy_names(phase: Phase) -> tuple[str, str]:
    """Names of the arrays and config that Flower's NumPyClient adapter reads."""
    head = NUMPY_IN[message_type(phase)]
    return f"{head}.parameters", f"{head}.config"


def is_number(value: Any) -> bool:
    """Tell an int or float from everything else, bool included."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
