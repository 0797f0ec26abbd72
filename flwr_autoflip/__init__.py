"""Federated pruning by loss-landscape exploration, as a Flower strategy plugin."""

from .client import AutoFlipClient, client_app
from .core.errors import (
    AutoFlipError,
    AutoFlipWarning,
    KeepError,
    UnsupportedLayerError,
    WireError,
)
from .core.version import __version__
from .files import export_onnx, load_pruned, save_pruned
from .mod import autoflip_mod
from .older import autoflip_server
from .presets import PRESETS, Options
from .strategy import AutoFlip

__all__ = [
    "PRESETS",
    "AutoFlip",
    "AutoFlipClient",
    "AutoFlipError",
    "AutoFlipWarning",
    "KeepError",
    "Options",
    "UnsupportedLayerError",
    "WireError",
    "__version__",
    "autoflip_mod",
    "autoflip_server",
    "client_app",
    "export_onnx",
    "load_pruned",
    "save_pruned",
]
