"""Who has which examples: flwr-datasets' partitioners, and a node's three parts."""

import contextlib
import io
import warnings
from collections.abc import Callable

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    Partitioner,
    PathologicalPartitioner,
)
from numpy.typing import NDArray

from .examples import Examples

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1
MIN_EXAMPLES = 10

Rows = NDArray[np.int64]
Partition = Callable[[Examples, int, int, int | None], list[Rows]]
"""(training set, nodes, seed, examples in total or None) -> its rows, a node each."""


def pathological(
    examples: Examples, num_nodes: int, seed: int, count: int | None = None
) -> list[Rows]:
    """Give each node two classes.

    The first class goes round, so that every class has nodes; the second is drawn.
    """
    partitioner = PathologicalPartitioner(
        num_partitions=num_nodes,
        partition_by="label",
        num_classes_per_partition=2,
        class_assignment_mode="first-deterministic",
        seed=seed,
    )
    return _by_label(partitioner, examples, count, seed)


def dirichlet(alpha: float) -> Partition:
    """Make a partition that draws each class's shares from Dirichlet(alpha)."""

    def partition(
        examples: Examples, num_nodes: int, seed: int, count: int | None = None
    ) -> list[Rows]:
        partitioner = DirichletPartitioner(
            num_partitions=num_nodes,
            partition_by="label",
            alpha=alpha,
            min_partition_size=MIN_EXAMPLES,
            seed=seed,
        )
        with warnings.catch_warnings():
            # It draws anew until everybody has enough, and warns of each draw.
            warnings.filterwarnings("ignore", "The specified min_partition_size")
            return _by_label(partitioner, examples, count, seed)

    return partition


def by_owner(
    examples: Examples, num_nodes: int, seed: int, count: int | None = None
) -> list[Rows]:
    """Make every node a person.

    With fewer nodes than people, the seed draws people, however much they wrote. With
    fewer examples, everyone gives up the same share, so sizes stay as unequal.
    """
    generator = np.random.default_rng(seed)
    assert examples.owners is not None
    people, counts = np.unique(examples.owners, return_counts=True)
    people = people[counts >= MIN_EXAMPLES]
    if len(people) < num_nodes:
        warnings.warn(
            f"{num_nodes} nodes were asked for, but only {len(people)} people have at "
            f"least {MIN_EXAMPLES} examples: these are the nodes.",
            stacklevel=2,
        )
    chosen = np.sort(generator.permutation(people)[:num_nodes])
    parts = [np.flatnonzero(examples.owners == person) for person in chosen]
    total = sum(map(len, parts))
    share = 1.0 if count is None else min(1.0, count / total)

    def some(rows: Rows) -> Rows:
        few = min(len(rows), max(MIN_EXAMPLES, round(share * len(rows))))
        return rows[np.sort(generator.permutation(len(rows))[:few])]

    return [some(rows) for rows in parts]


def _by_label(
    partitioner: Partitioner, examples: Examples, count: int | None, seed: int
) -> list[Rows]:
    """Let a partitioner split so many examples, drawn by the seed."""
    rows = np.arange(len(examples))
    if count is not None and count < len(rows):
        rows = np.random.default_rng(seed).permutation(len(rows))[:count]
    partitioner.dataset = Dataset.from_dict(
        {"row": rows, "label": examples.labels[rows]}
    )
    with contextlib.redirect_stderr(io.StringIO()):  # one of them draws a bar
        nodes = range(partitioner.num_partitions)
        return [np.array(partitioner.load_partition(node)["row"]) for node in nodes]


def split_node(
    rows: Rows, seed: int, *, later_test: bool = False
) -> tuple[Rows, Rows, Rows]:
    """Split a node's rows: 20 % local test, then 10 % of the rest for validation.

    Parameters
    ----------
    rows : ndarray of int
    seed : int
        Draws them.
    later_test : bool (default: False)
        The node's test examples are elsewhere, later in time: none is taken for it
        here, and rows keep their order, so that validation comes last.

    Returns
    -------
    train, validation, test : ndarray of int
        They do not overlap.
    """
    count = len(rows)
    if not later_test:
        rows = rows[np.random.default_rng(seed).permutation(count)]
        count -= max(1, round(TEST_SHARE * count))
    cut = count - max(1, round(VALIDATION_SHARE * count))
    return rows[:cut], rows[cut:count], rows[count:]
