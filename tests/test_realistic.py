"""Nobody's honest work is lost, and what is counted is what was done."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import realistic
from flwr.serverapp.strategy import FedAdam, FedMedian, Krum
from realistic import CASES, EMPTY, SIZES

from flwr_autoflip import AutoFlip

HERE = Path(__file__).parent
NUM_NODES = len(SIZES)
ROUNDS = 6


def rows_of(strategy: AutoFlip, phase: str) -> list[dict[str, Any]]:
    return [row for row in strategy.ledger.rows if row["phase"] == phase]


def assert_only_the_empty_node_is_refused(rows: list[dict[str, Any]]) -> None:
    refused = [row for row in rows if row["status"] != "ok"]
    assert {row["node"] for row in refused} <= {100 + EMPTY}
    assert all("num-examples" in row["reason"] for row in refused)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", CASES)
def test_every_node_with_data_counts_in_every_round(name: str, dtype: str) -> None:
    strategy, result = realistic.run(name, ROUNDS, value_dtype=dtype)

    rows = rows_of(strategy, "train")
    assert_only_the_empty_node_is_refused(rows)
    statuses = Counter(row["node"] for row in rows if row["status"] == "ok")
    assert statuses == {100 + i: ROUNDS for i in range(NUM_NODES) if i != EMPTY}
    assert all(np.isfinite(a.numpy()).all() for a in result.arrays.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [("pictures", 0.9), ("pretrained", 0.9), ("words", 0.5), ("signals", 0.6)],
)
def test_it_learns(name: str, least: float) -> None:
    strategy, result = realistic.run(name, 10)

    assert realistic.accuracy(name, strategy, result) > least


@pytest.mark.parametrize("name", CASES)
def test_examples_and_macs_are_those_that_were_done(name: str) -> None:
    strategy, _ = realistic.run(name, 2, method="dense")

    for row in rows_of(strategy, "train"):
        size = SIZES[row["node"] - 100]  # 0 where the node is empty
        assert row["examples"] == size
        assert row["macs_per_example"] == CASES[name].macs
        assert row["macs"] == 3 * size * CASES[name].macs
    for row in rows_of(strategy, "evaluate"):
        if size := SIZES[row["node"] - 100]:
            assert row["eval_examples"] == 2 * size  # logits once, loss once more
            assert row["macs"] == 2 * size * CASES[name].macs


@pytest.mark.parametrize("name", CASES)
def test_nodes_that_explore_are_heard_whatever_their_data(name: str) -> None:
    strategy, _ = realistic.run(name, 1, method="autoflip")

    rows = rows_of(strategy, "train")
    assert_only_the_empty_node_is_refused(rows)
    assert {row["parameters"] for row in rows if row["status"] == "ok"} == {
        strategy.layout.num_parameters
    }
    assert strategy.deployable_plan.num_parameters < strategy.layout.num_parameters


@pytest.mark.slow
@pytest.mark.parametrize("inner", [FedAdam, FedMedian, Krum])
def test_around_other_strategies(inner: Any) -> None:
    options = {"num_malicious_nodes": 1} if inner is Krum else {}
    wrapped = inner(min_available_nodes=NUM_NODES, **options)

    strategy, result = realistic.run("pictures", 3, wrapped)

    assert_only_the_empty_node_is_refused(rows_of(strategy, "train"))
    assert all(np.isfinite(a.numpy()).all() for a in result.arrays.values())


def test_tied_weights_stay_one() -> None:
    for dtype in ("float32", "int8"):
        _, result = realistic.run("words", 3, value_dtype=dtype)

        arrays = result.arrays
        head, embedding = arrays["head.weight"].numpy(), arrays["embed.weight"].numpy()
        np.testing.assert_array_equal(head, embedding)
        assert np.abs(head - realistic.initial("words")["head.weight"].numpy()).max()


def test_what_is_frozen_does_not_move() -> None:
    _, result = realistic.run("pretrained", 3)

    before = realistic.initial("pretrained")
    frozen, moving = "body.0.weight", "body.4.weight"
    # To one rounding: the mean of equal numbers need not be that number.
    np.testing.assert_allclose(
        result.arrays[frozen].numpy(), before[frozen].numpy(), atol=1e-6
    )
    assert np.abs(result.arrays[moving].numpy() - before[moving].numpy()).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pictures", "words"])
def test_through_flowers_own_engine(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from examples.simulation import flwr_run, superlink

    with superlink(tmp_path, HERE, HERE.parent) as environment:
        log = tmp_path / "run.log"
        config = {"case": name, "rounds": 2}
        app = HERE / "realistic_app"
        lines = list(flwr_run(app, config, NUM_NODES, environment, log))

    (line,) = [line for line in lines if "found: " in line]
    found = json.loads(line.split("found: ")[1])
    rows = found["rows"]
    assert Counter(row["status"] for row in rows) == {
        "ok": 2 * (NUM_NODES - 1),
        "refused": 2,
    }
    counted = Counter(row["examples"] for row in rows)
    assert counted == {size: 2 for size in SIZES}
    assert found["accuracy"] > 0.15
