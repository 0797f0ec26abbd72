"""What weak nodes cost in accuracy: the quickstart with thirds of strength, in-process.

A third of the nodes carries a quarter of the dense model's MACs, a third half, a third
all of it. Beside it the same run with nodes that carry the whole plan, and one in which
everybody trains the quarter, chosen by the same scores.
"""

from .quickstart_runs import Cases, compare

GUIDED = {"preset": "guided", "value-dtype": "float32"}
DENSE = {"policy": "dense", "value-dtype": "float32"}
QUARTER, MOST = {"threshold": "even-macs:0.25"}, {"threshold": "even-macs:0.75"}
CASES: Cases = {
    "dense, all whole": DENSE,
    "dense, thirds": DENSE | {"budgets": "thirds"},
    "l1, all a quarter": GUIDED | QUARTER | {"policy": "l1"},
    "guided, all whole": GUIDED | MOST,
    "guided, thirds": GUIDED | MOST | {"budgets": "thirds"},
    "guided, all a quarter": GUIDED | QUARTER,
}

if __name__ == "__main__":
    compare(CASES, "budgets", __doc__)
