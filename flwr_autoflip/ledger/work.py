"""What a node spends, from the MACs of its forward passes."""

STEP_PER_FORWARD = 3
"""MACs of a training step over those of its forward pass: one forward, two backward."""


def count_work(macs: int, eval_macs: int) -> int:
    """Count the MACs that a node spent.

    Parameters
    ----------
    macs, eval_macs : int
        Of its forward passes, with and without gradients.

    Returns
    -------
    int

    Examples
    --------
    >>> count_work(1000, eval_macs=400)
    3400
    """
    return STEP_PER_FORWARD * macs + eval_macs
