"""Who has which rows: flwr-datasets' partitioners, and a node's three parts."""

import contextlib
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
)

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.1
MIN_EXAMPLES = 10

Partition = Callable[[Dataset, int, int, int | None], list[Dataset]]
"""(training rows, nodes, seed, examples in total or None) -> rows a node."""


def pathological(
    rows: Dataset, num_nodes: int, seed: int, examples: int | None = None
) -> list[Dataset]:
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
    return _parts(partitioner, _subset(rows, examples, seed))


def dirichlet(alpha: float) -> Partition:
    """Make a partition that draws each class's shares from Dirichlet(alpha).

    Raises
    ------
    ValueError
        If alpha is not positive.
    """
    if alpha <= 0:
        raise ValueError(f"partition: Dirichlet's alpha must be positive, got {alpha}.")

    def partition(
        rows: Dataset, num_nodes: int, seed: int, examples: int | None = None
    ) -> list[Dataset]:
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
            return _parts(partitioner, _subset(rows, examples, seed))

    return partition


def natural(column: str) -> Partition:
    """Make a partition by person: a node is a writer or a role.

    With fewer nodes than people, the seed draws people, however much they wrote. With
    fewer examples, everyone gives up the same share, so sizes stay as unequal.
    """

    def partition(
        rows: Dataset, num_nodes: int, seed: int, examples: int | None = None
    ) -> list[Dataset]:
        generator = np.random.default_rng(seed)
        owners = np.asarray(rows[column])
        people, counts = np.unique(owners, return_counts=True)
        people = people[counts >= MIN_EXAMPLES]
        if len(people) < num_nodes:
            warnings.warn(
                f"{num_nodes} nodes were asked for, but only {len(people)} have at "
                f"least {MIN_EXAMPLES} examples under {column!r}: these are the nodes.",
                stacklevel=2,
            )
        people = generator.permutation(people)[:num_nodes]
        chosen = np.flatnonzero(np.isin(owners, people))
        share = 1.0 if examples is None else min(1.0, examples / len(chosen))
        parts = _parts(NaturalIdPartitioner(column), rows.select(chosen))
        return [_share(part, share, generator) for part in parts]

    return partition


def find_partition(name: str) -> Partition:
    """Find a partition of labels by its name.

    Raises
    ------
    ValueError
        With what was expected.
    """
    if name == "pathological":
        return pathological
    if found := re.fullmatch(r"dirichlet-(\d*\.?\d+)", name):
        return dirichlet(float(found[1]))
    raise ValueError(
        "partition: expected pathological or dirichlet-ALPHA, such as dirichlet-0.1, "
        f"got {name!r}."
    )


def _parts(partitioner: Partitioner, rows: Dataset) -> list[Dataset]:
    partitioner.dataset = rows
    with contextlib.redirect_stderr(io.StringIO()):  # one of them draws a bar
        count = partitioner.num_partitions
        return [partitioner.load_partition(node) for node in range(count)]


def _subset(rows: Dataset, examples: int | None, seed: int) -> Dataset:
    if examples is None or examples >= len(rows):
        return rows
    return rows.select(np.random.default_rng(seed).permutation(len(rows))[:examples])


def _share(rows: Dataset, share: float, generator: np.random.Generator) -> Dataset:
    count = min(len(rows), max(MIN_EXAMPLES, round(share * len(rows))))
    return rows.select(np.sort(generator.permutation(len(rows))[:count]))


@dataclass(frozen=True)
class Split:
    """One node's rows, in three parts that do not overlap."""

    train: Dataset
    validation: Dataset
    test: Dataset


def split_node(rows: Dataset, test: Dataset | None, seed: int) -> Split:
    """Split a node's rows: 20 % local test, then 10 % of the rest for validation.

    Parameters
    ----------
    rows : Dataset
    test : Dataset or None
        Rows that are this node's test already, later in time; ``rows`` then keep their
        order, so that validation comes last. Otherwise rows are drawn by the seed.
    seed : int

    Returns
    -------
    Split
    """
    count = len(rows)
    if test is None:
        rows = rows.select(np.random.default_rng(seed).permutation(count))
        count -= max(1, round(TEST_SHARE * count))
        test = rows.select(range(count, len(rows)))
    cut = count - max(1, round(VALIDATION_SHARE * count))
    return Split(rows.select(range(cut)), rows.select(range(cut, count)), test)
