"""What a node spends on examples: MACs of forward passes and of training steps."""

STEP_PER_FORWARD = 3
"""MACs of a training step over those of its forward pass: one forward, two backward."""


def count_work(macs_per_example: int, examples: int, eval_examples: int) -> int:
    """Count the MACs that a node spent.

    Parameters
    ----------
    macs_per_example : int
        Forward MACs of its model.
    examples, eval_examples : int
        Examples that went through it with and without gradients.

    Returns
    -------
    int

    Examples
    --------
    >>> count_work(100, examples=10, eval_examples=4)
    3400
    """
    return macs_per_example * (STEP_PER_FORWARD * examples + eval_examples)
