"""Participants' say in the plan, by hand and in a run."""

from pathlib import Path

import numpy as np
import pytest
from models import mlp_layout

from examples.paper.blended import Blended
from examples.paper.methods import EVERYTHING
from examples.paper.runs import LEDGER, Run, execute
from flwr_autoflip.ledger.ledger import read_ledger
from flwr_autoflip.methods.threshold import MacShare

LAYOUT = mlp_layout()
INITIAL = {
    "fc1.weight": np.float32([[1, 1, 1], [-2, -2, -2], [3, 3, 3], [4, 4, 4]]),
    "fc1.bias": np.float32([1, -2, 3, 4]),
    "fc2.weight": np.ones((2, 4), np.float32),
    "fc2.bias": np.ones(2, np.float32),
}


def report(by_unit: list[float]) -> dict[str, np.ndarray]:
    found = {name: np.ones_like(array) for name, array in INITIAL.items()}
    found["fc1.weight"] *= np.float32(by_unit)[:, None]
    found["fc1.bias"] *= np.float32(by_unit)
    return found


# Means 6, 9, 1, 2: ranks 3, 4, 1, 2 against 1, 2, 3, 4 of the initial weights.
REPORTS = [report([12, 9, 0, 4]), report([0, 9, 2, 0])]


@pytest.mark.parametrize(
    ("blend", "kept"),
    [
        (0.0, [2, 3]),
        (0.4, [1, 3]),  # 1.8, 2.8, 2.2, 3.2 of 4
        (1.0, [0, 1]),
    ],
)
def test_by_hand(blend: float, kept: list[int]) -> None:
    plan = Blended(MacShare(0.5), blend, INITIAL)(3, LAYOUT, INITIAL, REPORTS)

    assert plan.keep["fc1"].tolist() == kept


@pytest.mark.filterwarnings("ignore::flwr_autoflip.AutoFlipWarning")
@pytest.mark.parametrize("blend", ["0", "1"])
def test_plans_follow_the_participants_if_they_have_a_say(
    blend: str, data_dir: Path, tmp_path: Path
) -> None:
    method = EVERYTHING[f"blended-{blend}"]
    one = Run(tmp_path, "mnist", "tiny", method, 0, str(data_dir))

    execute(one)

    rows = read_ledger(one.folder / LEDGER)
    assert (sum(row["phase"] == "plan" for row in rows) > 1) == (blend == "1")
    assert one.result()["exploration"]["macs"] > 0
