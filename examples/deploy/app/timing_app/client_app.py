"""The node: the quickstart's own."""

from quickstart.client_app import app

__all__ = ["app"]
