"""Federated pruning by loss-landscape exploration, as a Flower strategy plugin."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.errors import (
    AutoFlipError,
    AutoFlipWarning,
    KeepError,
    UnsupportedLayerError,
    WireError,
)
from .core.version import __version__

if TYPE_CHECKING:
    from .client import AutoFlipClient, client_app
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

# What needs torch or Flower is imported when it is first asked for: the command line
# reads ledgers, and answers, in a fraction of the seconds that those two take.
_HOMES = {
    "AutoFlip": "strategy",
    "AutoFlipClient": "client",
    "Options": "presets",
    "PRESETS": "presets",
    "autoflip_mod": "mod",
    "autoflip_server": "older",
    "client_app": "client",
    "export_onnx": "files",
    "load_pruned": "files",
    "save_pruned": "files",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
