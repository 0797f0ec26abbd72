"""What a method changes in nodes' training."""

from dataclasses import replace

from examples.paper.federation import Setting
from examples.paper.method import Method
from examples.paper.methods import EVERYTHING, EXPLORATIONS
from examples.paper.tasks import find_task
from flwr_autoflip.core.threshold import MacShare

SMALL = find_task("mnist").scale("small")  # 2 epochs at a rate of .05


def test_factors_multiply_and_changes_replace() -> None:
    method = Method(
        "", "", factors={"local_epochs": 2, "lr": 0.5}, changes={"server_momentum": 0.9}
    )

    tuned = method.tune(SMALL)

    assert tuned == replace(SMALL, local_epochs=4, lr=0.025, server_momentum=0.9)
    assert isinstance(tuned.local_epochs, int)
    assert Method("", "").tune(SMALL) == SMALL


def test_rivals_can_be_run() -> None:
    rivals = {method.rival for method in EVERYTHING.values()} - {""}

    assert rivals <= set(EVERYTHING)


def test_a_share_left_to_the_package_is_told_apart() -> None:
    # The exponent is no option, so a folder of an earlier default would look the same.
    left = {name for name, m in EVERYTHING.items() if m.default_exponent is not None}

    assert left == {"autoflip", "guided", "autoflip-4x", *EXPLORATIONS}
    assert EVERYTHING["autoflip"].default_exponent == MacShare().exponent == 3
    described = Setting("mnist", "tiny", "autoflip", 0).describe()
    assert described["default_exponent"] == 3
    assert "default_exponent" not in Setting("mnist", "tiny", "random", 0).describe()
