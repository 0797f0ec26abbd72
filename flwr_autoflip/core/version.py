"""The package's version, which the server and every node must agree on."""

__version__ = "0.1.0"
