"""Budgets as nodes write them."""

from typing import Any

import pytest

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.graph.budget import Budget, parse_budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs:0.25", Budget("macs", 0.25)),
        ("parameters:.5", Budget("parameters", 0.5)),
        ("memory:0.3333333333333333", Budget("memory", 1 / 3)),
        ("macs:1", None),
        ("", None),
        (None, None),
    ],
)
def test_forms(text: Any, budget: Budget | None) -> None:
    assert parse_budget(text, whose="node 7") == budget
    assert parse_budget(str(budget or ""), whose="node 7") == budget


OUT_OF_RANGE = ["macs:0", "macs:-1", "macs:1.5", "macs:nan"]
NO_BUDGET = ["macs", "macs:", "macs:much", "time:0.5", ":0.5", "0.25", 0.25, 1, True]


@pytest.mark.parametrize("bad", [*OUT_OF_RANGE, *NO_BUDGET])
def test_anything_else_names_the_node_and_the_forms(bad: Any) -> None:
    with pytest.raises(AutoFlipError) as error:
        parse_budget(bad, whose="node 7")

    text = str(error.value)
    assert text.startswith("node 7: autoflip-budget must be 'macs:0.25'")
    assert f"got {bad!r}" in text
