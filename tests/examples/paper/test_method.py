"""What a method changes in nodes' training."""

from dataclasses import replace

from examples.paper.method import Method
from examples.paper.methods import EVERYTHING
from examples.paper.tasks import find_task

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
