"""The paper's five tasks, every method: ``python -m examples.paper``."""
