"""Federated pruning by loss-landscape exploration, as a Flower strategy plugin."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .errors import (
    AutoFlipError,
    AutoFlipWarning,
    KeepError,
    UnsupportedLayerError,
    WireError,
)

__version__ = version("flwr-autoflip")

if TYPE_CHECKING:
    from . import methods
    from .client.client import AutoFlipClient, client_app
    from .client.mod import autoflip_mod
    from .graph.layout import Layout
    from .graph.pack import expand
    from .graph.plan import Plan
    from .graph.save import export_onnx, load_pruned, save_pruned
    from .graph.shrink import shrink
    from .graph.tracing.trace import trace
    from .server.legacy import autoflip_server
    from .server.strategy import AutoFlip

__all__ = [
    "AutoFlip",
    "AutoFlipClient",
    "AutoFlipError",
    "AutoFlipWarning",
    "KeepError",
    "Layout",
    "Plan",
    "UnsupportedLayerError",
    "WireError",
    "__version__",
    "autoflip_mod",
    "autoflip_server",
    "client_app",
    "expand",
    "export_onnx",
    "load_pruned",
    "methods",
    "save_pruned",
    "shrink",
    "trace",
]

# What needs torch or Flower is imported when it is first asked for: the command line
# reads ledgers, and answers, in a fraction of the seconds that those two take. What is
# of graph and methods works without Flower.
_HOMES = {
    "AutoFlip": "server.strategy",
    "AutoFlipClient": "client.client",
    "Layout": "graph.layout",
    "Plan": "graph.plan",
    "autoflip_mod": "client.mod",
    "autoflip_server": "server.legacy",
    "client_app": "client.client",
    "expand": "graph.pack",
    "export_onnx": "graph.save",
    "load_pruned": "graph.save",
    "save_pruned": "graph.save",
    "shrink": "graph.shrink",
    "trace": "graph.tracing.trace",
}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "methods":
            return import_module(".methods", __name__)
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            home = import_module(f".{_HOMES[name]}", __name__)
        except AttributeError as error:  # Python would hide it: "cannot import name"
            raise ImportError(f"{name} cannot be imported: {error}") from error
        globals()[name] = value = getattr(home, name)
        return value
