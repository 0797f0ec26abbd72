"""Nodes of different strength: what each is sent, trains, and adds to the average."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from federation import (
    EXAMPLE,
    Client,
    TinyNet,
    guided,
    initial,
    make_model,
    plain_app,
    sgd,
)
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Strategy,
)
from grid import Fault, LocalGrid
from torch import nn

from flwr_autoflip import (
    AutoFlip,
    AutoFlipClient,
    AutoFlipError,
    autoflip_mod,
    client_app,
)
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of, shrink
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods import PruneFl

NODES = 6
THIRDS = {100: "macs:0.25", 101: "macs:0.5", 103: "macs:0.25", 104: "macs:0.5"}
"""Two nodes of each strength; 102 and 105 carry the dense model."""
WEAK = dict.fromkeys(range(100, 106), "macs:0.25")


def build(inner: Strategy | None = None, **options: Any) -> AutoFlip:
    options = guided(**{"policy": "dense", "budgets": True, **options})
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
    return {name: a.numpy() for name, a in result.arrays.items()}, grid


def rows_of(strategy: AutoFlip, phase: str) -> list[dict[str, Any]]:
    return [row for row in strategy.ledger.rows if row["phase"] == phase]


def shares(strategy: AutoFlip, phase: str = "train") -> dict[int, float]:
    """Node to the share of the dense MACs that its model took."""
    dense = strategy._cost_of.dense().macs
    rows = rows_of(strategy, phase)
    return {row["node"]: row["macs_per_example"] / dense for row in rows}


# --- Plans fit, and are nested ---


@pytest.mark.parametrize("resource", ["macs", "parameters", "memory"])
def test_every_node_trains_what_it_can_carry(resource: str) -> None:
    strategy = build()
    budgets = {n: b.replace("macs", resource) for n, b in THIRDS.items()}

    run(strategy, budgets, rounds=2)

    rows = rows_of(strategy, "train")
    assert len(rows) == 2 * NODES
    assert {row["status"] for row in rows} == {"ok"}
    whole = strategy.layout.num_parameters
    plans = strategy._budgets.parts._cut
    assert set(plans) == set(budgets.values())
    for row in rows:
        budget = budgets.get(row["node"])
        if budget is None:
            assert row["parameters"] == whole
            continue
        plan = plans[budget]
        assert plan is not None
        small = shrink(TinyNet(), plan)  # what the node says it built is what fits
        assert row["parameters"] == sum(p.numel() for p in small.parameters()) < whole
        share = strategy._cost_of.ratio(plan, resource)  # type: ignore[arg-type]
        allowed = float(budget.partition(":")[2])
        assert 0.5 * allowed < share <= allowed
    quarter, half = (plans[f"{resource}:{share}"] for share in (0.25, 0.5))
    assert quarter is not None
    assert half is not None
    assert (half.alive | ~quarter.alive).all()


def test_a_budget_binds_only_below_the_runs_plan() -> None:
    strategy = build(policy="l1", threshold="macs:0.4")

    run(strategy)

    found = shares(strategy)
    run_plan = strategy._cost_of.ratio(strategy.deployable_plan(), "macs")
    assert found[101] == found[102] == run_plan > 0.25 >= found[100]


def test_sub_plans_travel_once() -> None:
    strategy = build(policy="l1", threshold="macs:0.9")

    run(strategy, rounds=3)

    rows = rows_of(strategy, "train")
    assert all(row["plan_bytes"] > 16 for row in rows[:NODES])
    assert [row["plan_bytes"] for row in rows[NODES:]] == [16] * 2 * NODES


def test_asking_is_a_small_message_once_a_node() -> None:
    strategy = build()

    run(strategy, rounds=2)

    asked = rows_of(strategy, "budget")
    assert sorted(row["node"] for row in asked) == list(range(100, 106))
    assert {row["status"] for row in asked} == {"ok"}
    assert {row["parameters"] for row in asked} == {0}
    assert max(row["bytes_down"] for row in asked) < 1700  # the layout is in it
    train = rows_of(strategy, "train")
    assert {row["plan_bytes"] for row in train if row["node"] in (102, 105)} == {16}
    assert strategy.ledger.rows.index(asked[-1]) < strategy.ledger.rows.index(train[0])


def test_units_go_by_the_policys_own_scores() -> None:
    strategy = build(policy="autoflip", threshold="mass:0.95")

    run(strategy)

    reports = list(strategy.reports.values())
    scores = strategy.policy.rank_units(0, strategy.layout, {}, reports)
    plan = strategy.deployable_plan()
    cut = strategy._budgets.parts.fit("macs:0.25")
    assert cut is not None
    for name, kept in cut.keep.items():
        gone = np.setdiff1d(plan.keep[name], kept)
        assert len(gone)
        assert scores[name][kept].min() >= scores[name][gone].max()


# --- The average ---


def heterofl_round(plans: Mapping[int, Plan]) -> dict[str, np.ndarray]:
    """One round by hand: nodes train cut models; slices and weights are added up."""
    base = arrays_of(make_model())
    sums = {name: np.zeros(a.shape) for name, a in base.items()}
    weights = {name: np.zeros(a.shape) for name, a in base.items()}
    for node, plan in plans.items():
        small = shrink(make_model(), plan).train()
        sgd(small, node - 100)
        examples = 12 + (node - 100) % 3
        keep_conv, keep_fc1 = plan.keep["conv"], plan.keep["fc1"]
        columns = (16 * keep_conv[:, None] + np.arange(16)).ravel()
        places = {
            "conv.weight": np.ix_(keep_conv),
            "fc1.weight": np.ix_(keep_fc1, columns),
            "fc1.bias": np.ix_(keep_fc1),
            "fc2.weight": np.ix_(range(3), keep_fc1),
        }
        for name, array in arrays_of(small).items():
            whole = name in ("fc2.bias", "norm.num_batches_tracked")
            place = ... if whole else places.get(name, np.ix_(keep_conv))
            sums[name][place] += examples * array
            weights[name][place] += examples
    return {
        name: np.where(weights[name], sums[name] / np.maximum(weights[name], 1), array)
        for name, array in base.items()
    }


def plans_by_node(strategy: AutoFlip) -> dict[int, Plan]:
    """What each node of THIRDS trained."""
    by_budget = strategy._budgets.parts._cut
    whole = strategy._round_plan
    return {n: by_budget.get(THIRDS.get(n, "")) or whole for n in range(100, 106)}


def test_one_round_is_heterofls_average() -> None:
    strategy = build()

    arrays, _ = run(strategy)

    plans = plans_by_node(strategy)
    assert len({plan.num_parameters for plan in plans.values()}) == 3
    for name, expected in heterofl_round(plans).items():
        np.testing.assert_allclose(
            arrays[name], expected, rtol=1e-5, atol=1e-6, err_msg=name
        )


INNERS = {
    "fedavg": lambda: FedAvg(fraction_evaluate=0.0),
    "fedavgm": lambda: FedAvgM(server_momentum=0.9, fraction_evaluate=0.0),
    "fedadam": lambda: FedAdam(eta=0.01, fraction_evaluate=0.0),
}


@pytest.mark.parametrize("name", INNERS)
def test_what_nobody_trained_keeps_its_value_exactly(name: str) -> None:
    strategy = build(INNERS[name]())

    arrays, _ = run(strategy, WEAK, rounds=3)

    plan = strategy._budgets.parts.fit("macs:0.25")
    assert plan is not None
    before = arrays_of(make_model())
    for spec in strategy.layout.tensors:
        kept = plan.dense_mask(spec.name)
        assert arrays[spec.name].dtype == np.dtype(spec.dtype)
        np.testing.assert_array_equal(
            arrays[spec.name][~kept], before[spec.name][~kept], err_msg=spec.name
        )
    assert (arrays["fc1.bias"] != before["fc1.bias"]).any()


def test_a_run_without_budgets_is_the_same_as_before() -> None:
    asked, plain = build(), build(budgets=False)

    one, _ = run(asked, {}, rounds=2)
    other, _ = run(plain, {}, rounds=2)

    assert rows_of(plain, "budget") == []
    for name, array in other.items():
        np.testing.assert_array_equal(one[name], array)


# --- Exploring and evaluating ---


def test_only_nodes_that_carry_the_dense_model_explore() -> None:
    strategy = build(policy="autoflip", threshold="mass:0.95")

    run(strategy, rounds=2)

    assert sorted(row["node"] for row in rows_of(strategy, "explore")) == [102, 105]
    assert len(rows_of(strategy, "train")) == 2 * NODES
    assert shares(strategy)[100] <= 0.25


def test_others_explore_in_the_place_of_weak_nodes() -> None:
    inner = FedAvg(fraction_train=0.5, fraction_evaluate=0.0)
    strategy = build(inner, policy="autoflip", threshold="mass:0.95")

    run(strategy, {100: "macs:0.5", 101: "macs:0.5"})

    assert len(rows_of(strategy, "explore")) == 3
    assert {row["node"] for row in rows_of(strategy, "explore")} <= {102, 103, 104, 105}


def test_nobody_can_explore() -> None:
    with pytest.raises(
        AutoFlipError, match="none of 6 nodes can carry the dense model"
    ):
        run(build(policy="autoflip"), WEAK)


def test_one_node_that_can_explore_is_too_few_to_compare() -> None:
    strategy = build(preset="paper", policy="autoflip", exploration_epochs=1)
    budgets = dict.fromkeys(range(101, 106), "macs:0.5")

    with pytest.raises(AutoFlipError, match="compares explorers, got 1"):
        run(strategy, budgets)

    assert rows_of(strategy, "explore") == []


def test_weak_nodes_evaluate_what_they_carry() -> None:
    strategy = build(FedAvg(), policy="l1", threshold="macs:0.9")

    run(strategy)

    found = shares(strategy, "evaluate")
    assert len(found) == NODES
    assert found[100] <= 0.25 < found[101] <= 0.5 < found[102]
    assert {row["status"] for row in rows_of(strategy, "evaluate")} == {"ok"}


# --- Every kind of policy ---


@pytest.mark.filterwarnings("ignore:no weight moved")  # of a literal plan's rest
@pytest.mark.parametrize(
    "options",
    [
        {"preset": "paper", "threshold": 0.6, "exploration_epochs": 2},
        {"preset": "authors-code", "exploration_epochs": 1},
        {"policy": "autoflip", "threshold": "mass:0.95", "single_weights": 0.1},
        {"policy": "random", "threshold": "macs:0.8"},
        {"policy": "eflprune-random", "threshold": "macs:0.8"},
        {"policy": "eflprune-l2", "threshold": "macs:0.8"},
        {"policy": "eflprune-magnitude", "threshold": "2x"},
        {"policy": "structured-restart", "threshold": "auto"},
        {"policy": PruneFl(interval=1)},
    ],
    ids=lambda options: str(next(iter(options.values()))),
)
def test_budgets_hold_with_every_policy(options: dict[str, Any]) -> None:
    strategy = build(**({"policy": "autoflip"} | options))

    run(strategy, rounds=2)

    rows = rows_of(strategy, "train")
    assert len(rows) == 2 * NODES
    assert {(row["status"], row["reason"]) for row in rows} == {("ok", "")}
    dense = strategy._cost_of.dense().macs
    for row in rows:
        budget = THIRDS.get(row["node"], "macs:1")
        assert row["macs_per_example"] <= float(budget[5:]) * dense


def test_only_nodes_with_the_whole_plan_are_probed() -> None:
    strategy = build(policy=PruneFl(interval=1))

    _, grid = run(strategy)

    probed = {
        node
        for node, message in grid.log
        for config in message.content.config_records.values()
        if "autoflip-probe" in config
    }
    assert probed == {102, 105}


def test_late_nodes_that_cannot_explore_still_train() -> None:
    inner = FedAvg(fraction_train=0.5, fraction_evaluate=0.0)
    strategy = build(
        inner, policy="autoflip", guidance_from="participants", threshold="mass:0.95"
    )

    run(strategy, rounds=6)

    assert {row["node"] for row in rows_of(strategy, "explore")} <= {102, 105}
    assert {row["status"] for row in rows_of(strategy, "train")} == {"ok"}
    assert {row["node"] for row in rows_of(strategy, "train")} > {102, 105}


# --- What can go wrong ---


@pytest.mark.parametrize("bad", ["macs:2", "much", 0.25])
def test_a_bad_budget_fails_that_node_only(bad: Any) -> None:
    strategy = build()

    run(strategy, {100: bad}, rounds=2)

    mine = [row for row in node_rows(strategy.ledger.rows) if row["node"] == 100]
    assert [(row["phase"], row["status"]) for row in mine] == [
        ("budget", "failed"),
        ("budget", "failed"),  # asked again
    ]
    assert "node 100: autoflip-budget must be 'macs:0.25'" in mine[0]["reason"]
    assert len(rows_of(strategy, "train")) == 2 * (NODES - 1)


def test_a_receipt_that_is_no_budget_is_refused() -> None:
    def lie(node: int, reply: Message) -> Message:
        receipt = dict(reply.content["autoflip"])
        if node == 100 and "autoflip-budget" in receipt:
            receipt["autoflip-budget"] = "macs:7"
            reply.content["autoflip"] = ConfigRecord(receipt)
        return reply

    strategy = build()

    run(strategy, {}, fault=lie)

    (row,) = [row for row in node_rows(strategy.ledger.rows) if row["node"] == 100]
    assert (row["phase"], row["status"]) == ("budget", "refused")


def test_a_budget_below_the_smallest_model_takes_no_part(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = build()

    with caplog.at_level("WARNING", logger="flwr"):
        run(strategy, {100: "macs:0.001"})

    assert "nodes with budget 'macs:0.001' take no part: the fewest" in caplog.text
    assert [
        r["phase"] for r in node_rows(strategy.ledger.rows) if r["node"] == 100
    ] == ["budget"]
    assert len(rows_of(strategy, "train")) == NODES - 1


def test_no_node_can_take_part() -> None:
    strategy = build(FedAvg())

    arrays, _ = run(strategy, dict.fromkeys(range(100, 106), "macs:nothing"), rounds=2)

    for name, array in arrays_of(make_model()).items():
        np.testing.assert_array_equal(arrays[name], array)


def test_a_server_that_does_not_ask_is_refused_by_the_node() -> None:
    strategy = build(budgets=False)

    run(strategy, {100: "macs:0.25"})

    (row,) = [row for row in rows_of(strategy, "train") if row["node"] == 100]
    assert row["status"] == "failed"
    assert "set budgets=True in the server's AutoFlip" in row["reason"]


def test_a_node_whose_budget_changed_is_asked_again() -> None:
    strategy = build()
    grid = LocalGrid(client_app(Client), NODES)
    trained = 0

    def restart(node: int, reply: Message) -> Message:
        nonlocal trained
        trained += 1
        if trained == 2 * NODES:  # asked and trained: the end of round 1
            grid.contexts[100].node_config["autoflip-budget"] = "macs:0.5"
        return reply

    grid.fault = restart
    strategy.start(grid, initial(), num_rounds=3)

    rows = [row for row in node_rows(strategy.ledger.rows) if row["node"] == 100]
    assert [(row["phase"], row["status"]) for row in rows] == [
        ("budget", "ok"),
        ("train", "ok"),
        ("train", "failed"),
        ("budget", "ok"),
        ("train", "ok"),
    ]
    assert "the budget changed" in rows[2]["reason"]
    assert rows[4]["parameters"] < rows[1]["parameters"]


def test_privacy_by_clipping_and_budgets_exclude_each_other() -> None:
    private = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, NODES)

    with pytest.raises(
        AutoFlipError, match="leave budgets or differential privacy out"
    ):
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


def test_plain_clientapp_gives_the_same_result() -> None:
    plain = ClientApp(client_fn=lambda context: Client(context).to_client())

    one, _ = run(build(), rounds=2)
    other, _ = run(build(client_api="numpy"), rounds=2, app=plain)

    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_a_mod_takes_part_as_a_dense_node_and_refuses_less() -> None:
    strategy = build()

    run(strategy, {100: "macs:0.5"}, app=plain_app([autoflip_mod]))

    status = {row["node"]: row["status"] for row in rows_of(strategy, "budget")}
    assert status.pop(100) == "failed"
    assert set(status.values()) == {"ok"}
    assert len(rows_of(strategy, "train")) == NODES - 1
    assert "use AutoFlipClient" in rows_of(strategy, "budget")[0]["reason"]


class Wide(nn.Sequential):
    """Linear 4 -> 40 -> 2; a hidden unit has 7 of 282 parameters."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 2))


class WideClient(AutoFlipClient):
    """Trains on one batch that everybody has."""

    def __init__(self, context: Context) -> None:
        super().__init__(Wide, context)

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        model(torch.ones(2, 4)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        return 2, {}


def test_a_budget_below_a_tenth_of_a_group_is_met_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = AutoFlip(
        FedAvg(fraction_evaluate=0.0),
        Wide(),
        torch.zeros(1, 4),
        policy="dense",
        budgets=True,
    )
    grid = LocalGrid(client_app(WideClient), 3)
    for node, share in {100: 0.12, 101: 0.05}.items():
        budget = f"parameters:{share}"
        grid.contexts[node].node_config["autoflip-budget"] = budget

    with caplog.at_level("WARNING", logger="flwr"):
        strategy.start(grid, ArrayRecord(Wide().state_dict()), num_rounds=1)

    rows = {row["node"]: row["parameters"] for row in rows_of(strategy, "train")}
    assert rows == {100: 4 * 7 + 2, 101: 1 * 7 + 2, 102: 282}
    assert caplog.messages[1:] == [
        "\t> nodes with budget 'parameters:0.05' keep less than a tenth of ['0']: no "
        "more fits"
    ]
