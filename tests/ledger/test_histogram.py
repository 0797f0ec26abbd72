"""Units counted by score."""

import numpy as np
import torch
from federation import EXAMPLE, TinyNet

from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.histogram import BINS, unit_histograms

LAYOUT = trace(TinyNet(), EXAMPLE)


def test_counts_by_hand() -> None:
    torch.manual_seed(0)
    plan = Plan(LAYOUT, {"conv": np.array([1, 2, 5]), "fc1": np.arange(8)})
    scores = {
        "conv": np.array([0.0, 0.19, 0.4, 0.0, 0.01, 0.2]),
        "fc1": np.zeros(8),
    }

    found = unit_histograms(plan, scores)

    # conv: bins of 0.02; 0.4 is in the last one
    kept, gone = np.zeros(BINS, int), np.zeros(BINS, int)
    kept[[9, 19, 10]] = 1
    gone[0] = 3
    assert found["conv"] == {
        "top": 0.4,
        "kept": kept.tolist(),
        "pruned": gone.tolist(),
    }
    assert found["fc1"]["top"] == 0
    assert found["fc1"]["kept"] == [8] + [0] * (BINS - 1)  # nothing moved
    assert sum(found["fc1"]["pruned"]) == 0
