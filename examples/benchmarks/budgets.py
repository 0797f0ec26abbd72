"""What weak nodes cost in accuracy: the quickstart with thirds of strength, in-process.

A third of the nodes carries a quarter of the dense model's MACs, a third half, a third
all of it. Beside it the same run with nodes that carry the whole plan, and one in which
everybody trains the quarter, chosen by the same scores.
"""

from .quickstart_runs import Cases, compare

CASES: Cases = {
    "dense, all whole": {"policy": "dense"},
    "dense, thirds": {"policy": "dense", "budgets": "thirds"},
    "l1, all a quarter": {"policy": "l1", "threshold": "even-macs:0.25"},
    "autoflip, all whole": {"threshold": "even-macs:0.75"},
    "autoflip, thirds": {"threshold": "even-macs:0.75", "budgets": "thirds"},
    "autoflip, all a quarter": {"threshold": "even-macs:0.25"},
}

if __name__ == "__main__":
    compare(CASES, "budgets", __doc__)
