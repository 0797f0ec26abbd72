"""The nodes of the realistic federation."""

from realistic import app

__all__ = ["app"]
