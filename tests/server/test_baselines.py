"""Other papers' methods in a federation: what travels, changes and is refused."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from federation import (
    EXAMPLE,
    Client,
    TinyNet,
    config_of,
    guided,
    initial,
    make_model,
    node_data,
    sgd,
)
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Strategy
from grid import LocalGrid
from torch import nn

from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of, shrink
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods import EflPrune, PruneFl, Structured
from flwr_autoflip.methods.baselines.initial_pruning import (
    Schedule,
    prune_initially_inplace,
)
from flwr_autoflip.methods.baselines.prunefl import RoundTime
from flwr_autoflip.methods.rescale import rescale_fan_in
from flwr_autoflip.methods.threshold import Compression

NODES = 4


class PruningClient(Client):
    """Prunes when it explores, like a client of PruneFL's first stage."""

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        if config["server-round"] != 0:
            return super().train(model, config)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
        density = prune_initially_inplace(
            model,
            optimizer,
            F.cross_entropy,
            [node_data(self.node)],
            Schedule(max_passes=5, interval=2),
            RoundTime(1.0, 1.0, 0.0),
        )
        return len(node_data(self.node)[0]), {"loss": 0.0, "density": density}


class Run:
    """A run that keeps each round's plan, sent weights and aggregated weights."""

    def __init__(
        self, policy: Any, rounds: int = 4, inner: Strategy | None = None, **kwargs: Any
    ) -> None:
        fault, client = kwargs.pop("fault", None), kwargs.pop("client", Client)
        inner = inner or FedAvg(fraction_evaluate=0.0)
        options = guided(policy=policy, evaluate_dense=True, **kwargs)
        self.strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)
        self.plans: list[Plan] = []
        self.sent: list[dict[str, np.ndarray]] = []
        self.deployed: dict[int, Plan] = {}
        self.weights: dict[int, dict[str, np.ndarray]] = {}
        train = self.strategy.configure_train

        def configure_train(*args: Any) -> list[Message]:
            messages = train(*args)
            self.plans.append(self.strategy._round_plan)
            self.sent.append({n: a.numpy() for n, a in args[1].items()})
            return messages

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            if server_round not in self.deployed:  # the deployable one comes first
                plan = self.strategy.deployable_plan(arrays)
                self.deployed[server_round] = plan
            self.weights[server_round] = {n: a.numpy() for n, a in arrays.items()}
            return MetricRecord({"zeros": 0.0})

        self.strategy.configure_train = configure_train  # type: ignore
        self.grid = LocalGrid(client_app(client), NODES, fault)
        self.result = self.strategy.start(
            self.grid, initial(), num_rounds=rounds, evaluate_fn=evaluate
        )
        self.arrays = {n: a.numpy() for n, a in self.result.arrays.items()}
        self.rows = self.strategy.ledger.rows

    def result_after(self, server_round: int) -> dict[str, np.ndarray]:
        """Dense weights that a round ended with."""
        return self.weights[server_round]

    def row(self, server_round: int, key: str, phase: str = "train") -> list[Any]:
        return [
            row[key]
            for row in self.rows
            if row["phase"] == phase and row["round"] == server_round
        ]


# --- PruneFL ---


def prunefl(**options: Any) -> PruneFl:
    return PruneFl(**{"interval": 2, "time": RoundTime(1.0, 1.0, 0.0)} | options)


def test_initial_pruning_is_the_exploration_of_one_node() -> None:
    run = Run(prunefl(interval=50), 2, client=PruningClient)

    (explorer,) = [row for row in run.rows if row["phase"] == "explore"]
    examples = len(node_data(explorer["node"] - 100)[0])
    # Five passes, and the trace that counts a weight's places.
    assert 5 * examples <= explorer["examples"] + explorer["eval_examples"]
    assert explorer["examples"] < 6 * examples + 10
    assert explorer["bytes_up"] > 2 * run.strategy.layout.num_parameters
    plan = run.plans[0]
    assert 0.1 < plan.num_parameters / run.strategy.layout.num_parameters < 0.9
    assert plan.alive.all()
    for name, mask in plan.mask.items():  # weights that went wait with first values
        before = arrays_of(make_model())[name]
        np.testing.assert_array_equal(run.arrays[name][~mask], before[~mask])
        assert (run.sent[0][name][mask] != before[mask]).all()


def test_mask_changes_after_the_interval_and_only_then() -> None:
    run = Run(prunefl(), 5, client=PruningClient)

    changed = [a is not b for a, b in zip(run.plans, run.plans[1:], strict=False)]
    assert changed == [False, True, False, True]
    assert run.plans[2].num_parameters != run.plans[1].num_parameters
    came_back = sum(
        int((run.plans[2].mask[n] & ~run.plans[1].mask[n]).sum())
        for n in run.plans[1].mask
    )
    assert came_back > 0
    assert [min(run.row(r, "plan_bytes")) > 16 for r in range(1, 6)] == [
        *(True, False, True, False, True)
    ]
    assert run.deployed[2] is run.plans[1]  # adjusted after the evaluation
    assert run.strategy.deployable_plan() is run.plans[4]


def test_bytes_of_the_probe_are_counted() -> None:
    run = Run(prunefl(), 3)

    quiet, probing = run.row(1, "bytes_up"), run.row(2, "bytes_up")
    gradients = 4 * run.strategy.layout.num_parameters
    for one, other in zip(quiet, probing, strict=True):
        assert gradients <= other - one <= gradients + 50
    asked = [
        "autoflip-probe" in config_of(message)
        for _, message in run.grid.log
        if "autoflip-regrow" in config_of(message)
    ]
    assert asked == [False] * 4 + [True] * 4 + [False] * 4


def test_gradients_are_those_of_the_rounds_own_training() -> None:
    run = Run(prunefl(), 2, client=PruningClient)

    masks = {n: torch.as_tensor(m) for n, m in run.plans[1].mask.items()}
    state = run.plans[1].apply(run.sent[1])
    expected: dict[str, Any] = {}
    for node in range(NODES):
        model = make_model()
        model.load_state_dict({n: torch.as_tensor(a) for n, a in state.items()})
        images, labels = node_data(node)
        total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3
        )
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            for name, parameter in model.named_parameters():
                total[name] += parameter.grad
                parameter.grad *= masks.get(name, torch.tensor(1.0))
            optimizer.step()
        for name, gradient in total.items():
            squares = len(images) * gradient.numpy() ** 2
            expected[name] = expected.get(name, 0) + squares
    for name, squares in run.strategy._planner.probed.items():
        np.testing.assert_allclose(
            squares, expected.pop(name), rtol=1e-3, atol=1e-6, err_msg=name
        )
    assert not expected


@pytest.mark.parametrize("kind", ["short", "nan", "negative"])
def test_a_bad_probe_is_refused_and_the_round_goes_on(kind: str) -> None:
    def fault(node: int, reply: Message) -> Message:
        if node != 100 or reply.content["arrays"]["values"].numpy().size < 1200:
            return reply  # only a probing round's reply is that long
        values = np.array(reply.content["arrays"]["values"].numpy())
        if kind == "short":
            values = values[:-1]
        else:
            values[-1] = np.nan if kind == "nan" else -1.0
        reply.content["arrays"] = ArrayRecord({"values": Array(values)})
        return reply

    run = Run(prunefl(), 3, fault=fault)

    assert sorted(run.row(2, "status")) == ["ok", "ok", "ok", "refused"]
    (reason,) = [r for r in run.row(2, "reason") if r]
    assert reason.startswith("probe: ")
    assert run.row(3, "status") == ["ok"] * NODES
    assert run.plans[2] is not run.plans[1]  # three nodes' gradients are enough


def test_without_any_probe_the_mask_stays() -> None:
    def fault(node: int, reply: Message) -> Message | None:
        large = reply.content["arrays"]["values"].numpy().size > 1200
        return None if large else reply

    run = Run(prunefl(), 3, fault=fault)

    assert run.row(2, "status") == ["missing"] * NODES
    assert run.plans[2] is run.plans[1]
    assert run.row(3, "status") == ["ok"] * NODES


def test_prunefl_at_a_compression() -> None:
    run = Run(prunefl(threshold=Compression(2.5)), 5, client=PruningClient)

    assert {plan.num_parameters for plan in run.plans} == {875 * 10 // 25}
    assert run.plans[2] is not run.plans[1]


# --- EFLPrune ---


def test_random_units_are_drawn_every_round_and_the_rest_keeps_its_value() -> None:
    run = Run(EflPrune("random", {"conv": 3, "fc1": 4}), 3)

    assert len({tuple(plan.alive) for plan in run.plans}) == 3
    for name, array in arrays_of(make_model()).items():  # no rescaling, round by round
        np.testing.assert_array_equal(run.sent[0][name], array)
    for server_round, plan in enumerate(run.plans, 1):
        before, after = run.sent[server_round - 1], run.result_after(server_round)
        for spec in run.strategy.layout.tensors:
            kept = plan.dense_mask(spec.name)
            np.testing.assert_array_equal(
                after[spec.name][~kept], before[spec.name][~kept]
            )
        assert (after["fc1.weight"] != before["fc1.weight"]).any()
        assert set(run.row(server_round, "parameters")) == {plan.num_parameters}
        assert min(run.row(server_round, "plan_bytes")) > 16
    assert [row for row in run.rows if row["phase"] == "explore"] == []


def test_evaluation_goes_by_the_evaluated_weights() -> None:
    policy = EflPrune("l1", {"conv": 3, "fc1": 4})
    run = Run(policy, 3, inner=FedAvg(fraction_evaluate=1.0))

    for server_round in range(4):
        weights = run.weights[server_round]
        expected = policy(server_round, run.strategy.layout, weights, [])
        np.testing.assert_array_equal(run.deployed[server_round].alive, expected.alive)
    small = run.strategy.deployable_model(run.result.arrays)
    np.testing.assert_array_equal(
        small.fc2.weight.detach(),
        run.deployed[3].take("fc2.weight", run.arrays["fc2.weight"]),
    )
    assert set(run.row(3, "status", "evaluate")) == {"ok"}


def test_magnitude_masks_single_weights_round_by_round() -> None:
    run = Run("eflprune-magnitude", 3, threshold="2x")

    assert {plan.num_parameters for plan in run.plans} == {437}
    assert all(plan.alive.all() for plan in run.plans)
    assert set(run.row(2, "macs_per_example")) == {run.strategy._cost_of.dense().macs}


@pytest.mark.parametrize("criterion", ["l2", "similarity", "bn"])
def test_every_criterion_takes_part(criterion: str) -> None:
    run = Run(f"eflprune-{criterion}", 2, inner=FedAdam(eta=0.01), threshold="2x")

    assert {row["status"] for row in node_rows(run.rows)} == {"ok"}
    assert run.plans[0].num_parameters <= 437


# --- Automatic structured pruning ---


def test_restart_starts_from_the_initial_values() -> None:
    run = Run(Structured(k=1.0), 5)

    sizes = [plan.num_parameters for plan in run.plans]
    assert sizes[0] == 875
    assert sizes[1] < 875
    assert sizes == sorted(sizes, reverse=True)
    assert all(set(b.keep["fc1"]) <= set(a.keep["fc1"])
               for a, b in zip(run.plans, run.plans[1:], strict=False))  # fmt: skip
    first = arrays_of(make_model())
    for number, plan in enumerate(run.plans[1:], 1):
        afresh = rescale_fan_in(first, plan)
        same = all(
            np.array_equal(run.sent[number][name], array)
            for name, array in afresh.items()
        )
        assert same == (plan is not run.plans[number - 1])
        if plan is not run.plans[number - 1]:
            assert min(run.row(number + 1, "plan_bytes")) > 16


def test_restart_also_reaches_an_inner_strategy_with_a_model_of_its_own() -> None:
    inner = FedAvgM(server_momentum=0.0, server_learning_rate=0.5, fraction_evaluate=0)

    run = Run(Structured(k=1.0), 2, inner=inner, rescale=False)

    plan, weight, name = run.plans[1], 0, "fc1.weight"
    assert plan is not run.plans[0]
    average = np.zeros(plan.small_shape(name))
    for node in range(NODES):
        small = shrink(make_model(), plan).train()
        sgd(small, node)
        weight += len(node_data(node)[0])
        average += len(node_data(node)[0]) * arrays_of(small)[name]
    fresh = plan.take(name, arrays_of(make_model())[name])
    np.testing.assert_allclose(
        plan.take(name, run.arrays[name]), (fresh + average / weight) / 2, atol=1e-6
    )


def test_without_restart_weights_go_on() -> None:
    run = Run(Structured(k=1.0, restart=False), 2)

    assert run.plans[1] is not run.plans[0]
    for name, array in run.result_after(1).items():
        np.testing.assert_array_equal(run.sent[1][name], array)


def test_structured_stops_when_nothing_changes() -> None:
    run = Run(Structured(k=5.0), 6)

    assert {id(plan) for plan in run.plans} == {id(run.plans[0])}
    assert run.plans[0].alive.all()


def test_structured_at_a_compression() -> None:
    run = Run("structured-restart", 4, threshold="2x")

    assert [plan.num_parameters for plan in run.plans[1:]] == [391] * 3
    assert run.strategy.deployable_plan() is run.plans[3]
    assert run.deployed[1] is run.plans[0]
