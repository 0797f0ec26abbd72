"""The Flower app of examples/benchmarks/churn.py."""
