"""Work by hand."""

from flwr_autoflip.ledger.work import STEP_PER_FORWARD, count_work


def test_a_training_step_is_three_forward_passes() -> None:
    # One forward and two backward products of the same size, Eq. 12's usual reading.
    assert STEP_PER_FORWARD == 3
    assert count_work(1000, 400) == 3 * 1000 + 400
