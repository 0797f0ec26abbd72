"""Who has which rows."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from examples.paper.partitions import (
    dirichlet,
    find_partition,
    natural,
    pathological,
    split_node,
)


def rows(count: int, classes: int = 10) -> Dataset:
    return Dataset.from_dict({"id": range(count), "label": np.arange(count) % classes})


def people(sizes: dict[str, int]) -> Dataset:
    owners = [who for who, size in sizes.items() for _ in range(size)]
    return Dataset.from_dict({"id": range(len(owners)), "writer": owners})


def ids(parts: list[Dataset]) -> list[list[int]]:
    return [list(part["id"]) for part in parts]


def flat(parts: list[Dataset]) -> list[int]:
    return sorted(number for part in ids(parts) for number in part)


@pytest.mark.parametrize("seed", [0, 1])
def test_pathological_nodes_have_two_classes(seed: int) -> None:
    parts = pathological(rows(1000), 20, seed)

    assert [len(set(part["label"])) for part in parts] == [2] * 20
    assert flat(parts) == list(range(1000))


def test_dirichlet_nodes_have_unequal_shares_of_all_rows() -> None:
    parts = dirichlet(1.0)(rows(4000, classes=20), 10, 0)

    assert flat(parts) == list(range(4000))
    shares = np.array([np.bincount(part["label"], minlength=20) for part in parts])
    assert shares.std() > 0.5 * shares.mean()  # of Dirichlet(1): nearly its mean


def test_a_smaller_alpha_is_less_equal() -> None:
    def spread(name: str) -> float:
        parts = find_partition(name)(rows(4000), 10, 0)
        shares = np.array([np.bincount(p["label"], minlength=10) for p in parts])
        return float(shares.std())

    assert spread("dirichlet-0.1") > spread("dirichlet-0.5") > spread("dirichlet-5")


@pytest.mark.parametrize("name", ["iid", "dirichlet", "dirichlet-x", "dirichlet--1"])
def test_an_unknown_partition_says_what_was_expected(name: str) -> None:
    with pytest.raises(ValueError, match="expected pathological or dirichlet-ALPHA"):
        find_partition(name)


def test_alpha_is_positive() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0"):
        find_partition("dirichlet-0.0")


@pytest.mark.parametrize("partition", [pathological, dirichlet(1.0)])
def test_seed_decides_and_subset_is_as_large_as_asked(partition) -> None:
    first, again, other = (partition(rows(2000), 10, s, 800) for s in (0, 0, 1))

    assert ids(first) == ids(again) != ids(other)
    assert len(flat(first)) == len(set(flat(first))) == 800


def test_natural_nodes_are_people(capfd: pytest.CaptureFixture[str]) -> None:
    sizes = {"a": 30, "b": 20, "c": 10}

    parts = natural("writer")(people(sizes), 3, 0)

    assert [Counter(part["writer"]) for part in parts] == [
        {who: size} for who, size in sizes.items()
    ]
    assert capfd.readouterr().err == ""  # no progress bar


def test_seed_draws_people_when_there_are_too_many() -> None:
    crowd = people({f"w{i:02}": 10 + i for i in range(40)})

    drawn = [natural("writer")(crowd, 5, seed) for seed in (0, 0, 1)]

    names = [[part["writer"][0] for part in parts] for parts in drawn]
    assert names[0] == names[1] != names[2]
    assert all(len(parts) == 5 for parts in drawn)


def test_fewer_examples_leave_sizes_as_unequal_and_rows_in_order() -> None:
    parts = natural("writer")(people({"a": 400, "b": 100, "c": 12}), 3, 0, 256)

    assert [len(part) for part in parts] == [200, 50, 10]  # ten at least
    assert all(list(part) == sorted(part) for part in ids(parts))


def test_too_few_people_are_all_taken_with_a_warning() -> None:
    crowd = people({"a": 20, "b": 20, "tiny": 9})

    with pytest.warns(UserWarning, match="5 nodes were asked for, but only 2 have"):
        parts = natural("writer")(crowd, 5, 0)

    assert {part["writer"][0] for part in parts} == {"a", "b"}


def test_a_node_has_three_parts_that_do_not_overlap() -> None:
    split = split_node(rows(100), None, seed=0)

    parts = [split.train, split.validation, split.test]
    assert [len(part) for part in parts] == [72, 8, 20]
    assert flat(parts) == list(range(100))
    assert ids([split.test]) != [list(range(80, 100))]
    assert ids([split_node(rows(100), None, 1).test]) != ids([split.test])


def test_where_the_test_comes_later_in_time_validation_does_too() -> None:
    later = rows(7)

    split = split_node(rows(100), later, seed=0)

    assert split.test is later
    assert ids([split.train, split.validation]) == [
        list(range(90)),
        list(range(90, 100)),
    ]
