"""The node: see examples/benchmarks/churn.py."""

from examples.benchmarks.churn import app

__all__ = ["app"]
