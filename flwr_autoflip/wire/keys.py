"""Every record key of wire version 1, and the phases they speak of."""

from importlib.metadata import version
from typing import Any, Literal

Phase = Literal["budget", "explore", "train", "evaluate"]

PACKAGE_VERSION = version("flwr-autoflip")
"""Which server and nodes must agree on."""

PREFIX = "autoflip-"
VERSION = "autoflip-version"
PACKAGE = "autoflip-package"
PHASE = "autoflip-phase"
RUN = "autoflip-run"
LAYOUT = "autoflip-layout"
PLAN = "autoflip-plan"
DIGEST = "autoflip-plan-digest"
PAYLOAD = "autoflip-payload"
DTYPE = "autoflip-dtype"
REGROW = "autoflip-regrow"
BUDGET = "autoflip-budget"
ANSWERING = "autoflip-answering"
ARRAYS_NAME = "autoflip-arrays-name"
CONFIG_NAME = "autoflip-config-name"
SCALE = "autoflip-scale"
PRIVACY = "autoflip-privacy"
CHECKSUM = "autoflip-checksum"
PARAMETERS = "autoflip-parameters"
EXAMPLES = "autoflip-examples"
EVAL_EXAMPLES = "autoflip-eval-examples"
MACS = "autoflip-macs"
EVAL_MACS = "autoflip-eval-macs"
UNCOUNTED = "autoflip-uncounted"
SECONDS = "autoflip-seconds"

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
