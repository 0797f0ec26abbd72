"""Nodes of different strength: what each is sent, trains, and adds to the average."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from federation import (
    EXAMPLE,
    RANDOM,
    Client,
    TinyNet,
    config_of,
    exploring,
    initial,
    make_model,
    plain_app,
    sgd,
)
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Strategy,
)
from grid import Fault, LocalGrid, numbers, rows_of

from flwr_autoflip import (
    AutoFlip,
    AutoFlipClient,
    AutoFlipError,
    autoflip_mod,
    client_app,
)
from flwr_autoflip.graph.pack import expand, pack_small
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import arrays_of, shrink
from flwr_autoflip.methods import L1, AuthorsCode, Guided, Paper, PruneFL
from flwr_autoflip.server.round.budgets import part_of

NODES = 6
THIRDS = {100: "macs:0.25", 101: "macs:0.5", 103: "macs:0.25", 104: "macs:0.5"}
"""Two nodes of each strength; 102 and 105 carry the dense model."""
ALL = range(100, 100 + NODES)
WEAK = dict.fromkeys(ALL, "macs:0.25")


def build(inner: Strategy | None = None, **options: Any) -> AutoFlip:
    options = {"method": "dense", "value_dtype": "float32", "budgets": True, **options}
    inner = inner or FedAvg(fraction_evaluate=0.0)
    return AutoFlip(inner, TinyNet(), EXAMPLE, **options)


def run(
    strategy: AutoFlip,
    budgets: Mapping[int, Any] = THIRDS,
    rounds: int = 1,
    app: ClientApp | None = None,
    fault: Fault | None = None,
) -> tuple[dict[str, np.ndarray], LocalGrid]:
    random.seed(0)  # FedAvg draws nodes from it
    grid = LocalGrid(app or client_app(Client), NODES, fault)
    for node, budget in budgets.items():
        grid.contexts[node].node_config["autoflip-budget"] = budget
    result = strategy.start(grid, initial(), num_rounds=rounds)
    return numbers(result), grid


def of_node(strategy: AutoFlip, node: int = 100) -> list[tuple[str, str]]:
    rows = rows_of(strategy, node=node)
    return [(row["phase"], row["status"]) for row in rows]


def shares(strategy: AutoFlip, phase: str = "train") -> dict[int, float]:
    """Node to the share of the dense MACs that its model took."""
    dense = strategy.cost_of.dense().macs
    rows = rows_of(strategy, phase)
    return {row["node"]: row["macs_per_example"] / dense for row in rows}


def part(strategy: AutoFlip, budget: str) -> Plan:
    """What is cut of the dense plan in round 1, by the initial weights."""
    plan, weights = dense_plan(strategy.layout), arrays_of(make_model())
    scores = strategy.method.importance(strategy.run.state.method, weights)
    found = part_of(plan, budget, scores, strategy.cost_of.ratio)
    assert found is not None
    return found


# --- What fits ---


@pytest.mark.parametrize("resource", ["macs", "parameters", "memory"])
def test_every_node_trains_what_it_can_carry(resource: Any) -> None:
    strategy = build()
    budgets = {n: b.replace("macs", resource) for n, b in THIRDS.items()}

    run(strategy, budgets)

    rows = rows_of(strategy, "train")
    assert {row["node"]: row["status"] for row in rows} == dict.fromkeys(ALL, "ok")
    for row in rows:
        plan = part(strategy, budgets.get(row["node"], ""))
        small = shrink(TinyNet(), plan)  # what the node says it built is what fits
        assert row["parameters"] == sum(p.numel() for p in small.parameters())
        if row["node"] in budgets:
            allowed = float(budgets[row["node"]].partition(":")[2])
            assert 0.5 * allowed < strategy.cost_of.ratio(plan, resource) <= allowed


def test_a_budget_binds_only_below_the_runs_plan() -> None:
    strategy = build(method=L1(macs=0.4))

    run(strategy)

    found = shares(strategy)
    run_plan = strategy.cost_of.ratio(strategy.deployable_plan, "macs")
    assert found[101] == found[102] == run_plan > 0.25 >= found[100]


def test_units_go_by_the_methods_own_importance() -> None:
    class Last(L1):
        def importance(self, state: Any, weights: Any) -> Any:
            return {g.name: np.arange(g.size) for g in state.plan.layout.groups}

    strategy = build(method=Last(macs=0.9))

    arrays, _ = run(strategy, WEAK)

    before, plan = arrays_of(make_model()), strategy.deployable_plan
    moved = np.flatnonzero(arrays["fc1.bias"] != before["fc1.bias"])
    assert 0 < len(moved) < len(plan.keep["fc1"])
    np.testing.assert_array_equal(moved, plan.keep["fc1"][-len(moved) :])


def test_asking_is_a_small_message_once_a_node() -> None:
    strategy = build()

    run(strategy, rounds=2)

    asked, train = rows_of(strategy, "budget"), rows_of(strategy, "train")
    assert sorted((row["node"], row["status"]) for row in asked) == [
        (node, "ok") for node in ALL
    ]
    assert {row["parameters"] for row in asked} == {0}
    assert max(row["bytes_down"] for row in asked) < 1700
    assert strategy.ledger.rows.index(asked[-1]) < strategy.ledger.rows.index(train[0])
    assert strategy.run.state.budgets == {**dict.fromkeys(ALL, ""), **THIRDS}


def test_weak_nodes_evaluate_what_they_carry() -> None:
    strategy = build(FedAvg(), method=L1(macs=0.9))

    run(strategy)

    found = shares(strategy, "evaluate")
    assert found[100] <= 0.25 < found[101] <= 0.5 < found[102]
    assert {row["status"] for row in rows_of(strategy, "evaluate")} == {"ok"}


# --- The average ---


def heterofl_round(plans: Mapping[int, Plan]) -> dict[str, np.ndarray]:
    """One round by hand: nodes train cut models; values and weights are added up."""
    base = arrays_of(make_model())
    sums = {name: np.zeros(array.shape) for name, array in base.items()}
    weights = {name: np.zeros(array.shape) for name, array in base.items()}
    for node, plan in plans.items():
        small = shrink(make_model(), plan).train()
        sgd(small, node - 100)
        examples = 12 + (node - 100) % 3
        for name, array in expand(
            base, pack_small(arrays_of(small), plan), plan
        ).items():
            sums[name] += examples * np.where(plan.dense_mask(name), array, 0)
            weights[name] += examples * plan.dense_mask(name)
    return {
        name: np.where(weights[name], sums[name] / np.maximum(weights[name], 1), array)
        for name, array in base.items()
    }


def test_one_round_is_heterofls_average() -> None:
    strategy = build()

    arrays, _ = run(strategy)

    plans = {node: part(strategy, THIRDS.get(node, "")) for node in ALL}
    assert len({plan.num_parameters for plan in plans.values()}) == 3
    for name, expected in heterofl_round(plans).items():
        np.testing.assert_allclose(
            arrays[name], expected, rtol=1e-5, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    "inner",
    [
        FedAvg(fraction_evaluate=0.0),
        FedAvgM(server_momentum=0.9, fraction_evaluate=0.0),
        FedAdam(eta=0.01, fraction_evaluate=0.0),
    ],
    ids=lambda inner: type(inner).__name__,
)
def test_what_nobody_trained_keeps_its_value_exactly(inner: Strategy) -> None:
    strategy = build(inner)

    arrays, _ = run(strategy, WEAK)

    plan, before = part(strategy, "macs:0.25"), arrays_of(make_model())
    for spec in strategy.layout.tensors:
        kept = plan.dense_mask(spec.name)
        assert arrays[spec.name].dtype == np.dtype(spec.dtype)
        np.testing.assert_array_equal(
            arrays[spec.name][~kept], before[spec.name][~kept], err_msg=spec.name
        )
    assert (arrays["fc1.bias"] != before["fc1.bias"]).any()


# --- Exploring, and every kind of method ---


def explored(strategy: AutoFlip) -> list[int]:
    """Nodes that trained the dense model in round 1."""
    dense = strategy.layout.num_parameters
    rows = [row for row in rows_of(strategy, "train") if row["round"] == 1]
    return sorted(row["node"] for row in rows if row["parameters"] == dense)


def test_only_nodes_that_carry_the_dense_model_explore() -> None:
    strategy = build(**exploring(0.95))

    run(strategy, rounds=2)

    assert explored(strategy) == [102, 105]
    assert len([r for r in rows_of(strategy, "train") if r["round"] == 2]) == NODES
    assert shares(strategy)[100] <= 0.25


def test_others_explore_in_the_place_of_weak_nodes() -> None:
    inner = FedAvg(fraction_train=0.5, fraction_evaluate=0.0)
    strategy = build(inner, **exploring(0.95))

    run(strategy, {100: "macs:0.5", 101: "macs:0.5"})

    assert len(explored(strategy)) == 3
    assert set(explored(strategy)) <= {102, 103, 104, 105}


@pytest.mark.filterwarnings("ignore:no weight moved")
def test_nobody_can_explore() -> None:
    with pytest.raises(AutoFlipError, match="no node gave a valid report"):
        run(build(method=Paper(epochs=1)), WEAK)

    strategy = build(**exploring())
    run(strategy, WEAK)  # its plan rests on the weights then
    assert explored(strategy) == []
    assert max(shares(strategy).values()) <= 0.25


@pytest.mark.filterwarnings("ignore:no weight moved")  # of a literal plan's rest
@pytest.mark.parametrize(
    "method",
    [
        Paper(threshold=0.6, epochs=2),
        AuthorsCode(epochs=1),
        Guided(threshold="cumulative:0.95", report="units"),
        RANDOM,
        "eflprune-random",
        "eflprune-magnitude",
        "structured-restart",
        PruneFL(threshold="2x", interval=1),
    ],
    ids=str,
)
def test_budgets_hold_with_every_method(method: Any) -> None:
    strategy = build(method=method)

    run(strategy, rounds=2)

    rows = rows_of(strategy, "train")
    assert {row["node"] for row in rows if row["round"] == 2} == set(ALL)
    assert {(row["status"], row["reason"]) for row in rows} == {("ok", "")}
    dense = strategy.cost_of.dense().macs
    for row in rows:
        budget = THIRDS.get(row["node"], "macs:1")
        assert row["macs_per_example"] <= float(budget[5:]) * dense


def test_only_nodes_with_the_whole_plan_are_asked_for_gradients() -> None:
    strategy = build(method=PruneFL(threshold="2x", interval=1))

    _, grid = run(strategy, rounds=2)

    asked = {
        node
        for node, message in grid.log
        if config_of(message).get("autoflip-payload") == "gradients"
    }
    assert asked == {102, 105}


# --- What can go wrong ---


@pytest.mark.parametrize(
    ("budget", "asked"),
    [
        *(("macs:2", "failed"), ("much", "failed"), (0.25, "failed")),
        ("macs:0.001", "ok"),  # below the smallest model
    ],
)
def test_a_budget_that_cannot_be_met_leaves_out_that_node_only(
    budget: Any, asked: str
) -> None:
    strategy = build()

    run(strategy, {100: budget}, rounds=2)

    times = 2 if asked == "failed" else 1  # whoever did not answer is asked again
    assert of_node(strategy) == [("budget", asked)] * times
    reasons = {row["reason"] for row in rows_of(strategy, "budget")} - {""}
    words = "node 100: autoflip-budget must be 'macs:0.25'"
    assert all(words in reason for reason in reasons)
    assert len(rows_of(strategy, "train")) == 2 * (NODES - 1)


def test_metadata_that_hold_no_budget_are_refused() -> None:
    def lie(node: int, reply: Message) -> Message:
        metadata = dict(reply.content["autoflip"])
        if node == 100 and "autoflip-budget" in metadata:
            metadata["autoflip-budget"] = "macs:7"
            reply.content["autoflip"] = ConfigRecord(metadata)
        return reply

    strategy = build()

    run(strategy, {}, fault=lie)

    assert of_node(strategy) == [("budget", "refused")]


def test_no_node_can_take_part() -> None:
    strategy = build(FedAvg())

    arrays, _ = run(strategy, dict.fromkeys(ALL, "macs:nothing"), rounds=2)

    for name, array in arrays_of(make_model()).items():
        np.testing.assert_array_equal(arrays[name], array)


def test_a_server_that_does_not_ask_is_refused_by_the_node() -> None:
    strategy = build(budgets=False)

    run(strategy, {100: "macs:0.25"})

    (row,) = rows_of(strategy, "train", node=100)
    assert row["status"] == "failed"
    assert "set budgets=True in the server's AutoFlip" in row["reason"]


def test_a_node_whose_budget_changed_is_asked_again() -> None:
    replies = 0

    def restart(node: int, reply: Message) -> Message:
        nonlocal replies
        replies += 1
        if replies == 2 * NODES:  # asked and trained: the end of round 1
            grid.contexts[100].node_config["autoflip-budget"] = "macs:0.5"
        return reply

    strategy, grid = build(), LocalGrid(client_app(Client), NODES, restart)
    strategy.start(grid, initial(), num_rounds=3)

    assert of_node(strategy) == [
        ("budget", "ok"),
        ("train", "ok"),
        ("train", "failed"),
        ("budget", "ok"),
        ("train", "ok"),
    ]
    first, failed, last = rows_of(strategy, "train", node=100)
    assert "the budget changed" in failed["reason"]
    assert last["parameters"] < first["parameters"]


def test_privacy_by_clipping_and_budgets_exclude_each_other() -> None:
    private = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, NODES)

    with pytest.raises(AutoFlipError, match="leave budgets or differential privacy"):
        build(private)


# --- Clients ---


def test_an_app_says_its_budget_itself() -> None:
    class Own(AutoFlipClient):
        train = Client.train

        def __init__(self, context: Context) -> None:
            self.node = int(context.node_config["partition-id"])
            super().__init__(TinyNet, context, budget="macs:0.5" if self.node else "")

    strategy = build()

    # What the app says goes before the node's own configuration.
    run(strategy, {100: "macs:0.25"}, app=client_app(Own))

    found = shares(strategy)
    assert found.pop(100) == 1
    assert all(share <= 0.5 for share in found.values())


def test_a_mod_takes_part_as_a_dense_node_and_refuses_less() -> None:
    strategy = build()

    run(strategy, {100: "macs:0.5"}, app=plain_app([autoflip_mod]))

    status = {row["node"]: row["status"] for row in rows_of(strategy, "budget")}
    assert status == {**dict.fromkeys(ALL, "ok"), 100: "failed"}
    assert len(rows_of(strategy, "train")) == NODES - 1
    (row,) = rows_of(strategy, "budget", node=100)
    assert "use AutoFlipClient" in row["reason"]
