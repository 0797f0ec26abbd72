"""Methods in a federation: what travels, changes and is refused."""

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
    initial,
    make_model,
    node_data,
    sgd,
)
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, Strategy
from grid import LocalGrid
from lottery import Lottery
from torch import nn

from flwr_autoflip import AutoFlip, AutoFlipError, client_app
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of, shrink_with
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods import EFLPrune, Method, PruneFL, Structured, named
from flwr_autoflip.methods.baselines.initial_pruning import (
    Schedule,
    prune_initially_inplace,
)
from flwr_autoflip.methods.baselines.prunefl import RoundTime
from flwr_autoflip.methods.rescale import rescale_fan_in

NODES = 4


class PruningClient(Client):
    """Prunes in round 1, like a client of PruneFL's first stage."""

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        if config["server-round"] != 1:
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
    """A run that keeps each round's plan and the weights it began and ended with."""

    def __init__(
        self,
        method: Method[Any] | str,
        rounds: int = 4,
        inner: Strategy | None = None,
        client: type[Client] = Client,
        fault: Any = None,
    ) -> None:
        self.strategy = AutoFlip(
            inner or FedAvg(fraction_evaluate=0.0),
            TinyNet(),
            EXAMPLE,
            method=method,
            value_dtype="float32",
        )
        self.plans: list[Plan] = []
        self.sent: list[dict[str, np.ndarray]] = []
        self.after: dict[int, dict[str, np.ndarray]] = {}
        self.deployed: dict[int, Plan] = {}
        train = self.strategy.configure_train

        def configure_train(*args: Any) -> list[Message]:
            messages = train(*args)
            order = self.strategy.run.order
            assert order is not None
            self.plans.append(order.plan)
            self.sent.append({n: a.numpy() for n, a in args[1].items()})
            return messages

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            state = self.strategy.run.state
            self.deployed[server_round] = state.method.plan
            self.after[server_round] = {n: a.numpy() for n, a in state.arrays.items()}
            return MetricRecord({"zeros": 0.0})

        self.strategy.configure_train = configure_train  # type: ignore
        self.grid = LocalGrid(client_app(client), NODES, fault)
        self.result = self.strategy.start(
            self.grid, initial(), num_rounds=rounds, evaluate_fn=evaluate
        )
        self.arrays = {n: a.numpy() for n, a in self.result.arrays.items()}
        self.rows = self.strategy.ledger.rows

    def row(self, server_round: int, key: str, phase: str = "train") -> list[Any]:
        return [
            row[key]
            for row in self.rows
            if row["phase"] == phase and row["round"] == server_round
        ]


# --- PruneFL ---


def prunefl(**options: Any) -> PruneFL:
    return PruneFL(**{"interval": 2, "time": RoundTime(1.0, 1.0, 0.0)} | options)


def test_initial_pruning_is_the_first_round_of_one_node() -> None:
    run = Run(prunefl(interval=50), 3, client=PruningClient)

    (explorer,) = [r for r in run.rows if r["round"] == 1 and r["phase"] == "train"]
    examples = len(node_data(explorer["node"] - 100)[0])
    # Five passes, and the trace that counts a weight's places.
    assert 5 * examples <= explorer["examples"] + explorer["eval_examples"]
    assert explorer["examples"] < 6 * examples + 10
    plan = run.plans[1]
    assert 0.1 < plan.num_parameters / run.strategy.layout.num_parameters < 0.9
    assert plan.alive.all()
    for name, mask in plan.mask.items():  # pruned weights wait with first values
        before = arrays_of(make_model())[name]
        np.testing.assert_array_equal(run.arrays[name][~mask], before[~mask])
        assert (run.sent[1][name][mask] != before[mask]).all()


def test_mask_changes_after_the_interval_and_only_then() -> None:
    run = Run(prunefl(), 6, client=PruningClient)

    changed = [a is not b for a, b in zip(run.plans, run.plans[1:], strict=False)]
    assert changed == [True, True, False, True, False]
    came_back = sum(
        int((run.plans[2].mask[n] & ~run.plans[1].mask[n]).sum())
        for n in run.plans[1].mask
    )
    assert came_back > 0
    assert run.deployed[2] is run.plans[2]


def test_bytes_of_gradients_are_counted() -> None:
    run = Run(prunefl(), 4)

    quiet, asked = run.row(3, "bytes_up"), run.row(2, "bytes_up")
    gradients = 4 * run.strategy.layout.num_parameters
    for one, other in zip(quiet, asked, strict=True):
        assert other - one > gradients - 4 * run.strategy.layout.num_parameters * 0.7
    configs = [config_of(message) for _, message in run.grid.log]
    payloads = [c["autoflip-payload"] for c in configs if "autoflip-payload" in c]
    assert payloads.count("gradients") == 2 * NODES


def test_gradients_are_those_of_the_rounds_own_training() -> None:
    seen: dict[str, Any] = {}

    class Watching(PruneFL):
        def learn(self, state: Any, done: Any) -> Any:
            if done.order.payload == "gradients":
                for result in done.results:
                    for name in result.report:
                        squares = result.num_examples * result.report[name]
                        seen[name] = seen.get(name, 0) + squares
            return super().learn(state, done)

    run = Run(
        Watching(interval=2, time=RoundTime(1.0, 1.0, 0.0)), 2, client=PruningClient
    )

    plan = run.plans[1]
    masks = {n: torch.as_tensor(m) for n, m in plan.mask.items()}
    state = plan.apply(run.sent[1])
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
    for name, squares in seen.items():
        np.testing.assert_allclose(
            squares, expected.pop(name), rtol=1e-3, atol=1e-6, err_msg=name
        )
    assert not expected


@pytest.mark.parametrize("kind", ["short", "nan", "negative"])
def test_bad_gradients_are_refused_and_the_round_goes_on(kind: str) -> None:
    def fault(node: int, reply: Message) -> Message:
        (place,) = reply.content.array_records
        ((name, array),) = reply.content[place].items()
        values = np.array(array.numpy())
        if node != 100 or values.size < 1200:
            return reply  # only a reply with gradients is that long
        if kind == "short":
            values = values[:-1]
        else:
            values[-1] = np.nan if kind == "nan" else -1.0
        reply.content[place] = ArrayRecord({name: Array(values)})
        return reply

    run = Run(prunefl(), 3, fault=fault)

    assert sorted(run.row(2, "status")) == ["ok", "ok", "ok", "refused"]
    (reason,) = [r for r in run.row(2, "reason") if r]
    assert "gradients" in reason
    assert run.row(3, "status") == ["ok"] * NODES
    assert run.plans[2] is not run.plans[1]  # three nodes' gradients are enough


# --- EFLPrune ---


def test_random_units_are_drawn_every_round_and_the_rest_keeps_its_value() -> None:
    run = Run(EFLPrune("random", threshold={"conv": 3, "fc1": 4}), 3)

    assert len({tuple(plan.alive) for plan in run.plans}) == 3
    for name, array in arrays_of(make_model()).items():  # no rescaling, round by round
        np.testing.assert_array_equal(run.sent[0][name], array)
    for server_round, plan in enumerate(run.plans, 1):
        before, after = run.sent[server_round - 1], run.after[server_round]
        for spec in run.strategy.layout.tensors:
            kept = plan.dense_mask(spec.name)
            np.testing.assert_array_equal(
                after[spec.name][~kept], before[spec.name][~kept]
            )
        assert (after["fc1.weight"] != before["fc1.weight"]).any()
        assert set(run.row(server_round, "parameters")) == {plan.num_parameters}
    assert [row for row in run.rows if row["phase"] == "explore"] == []


def test_evaluation_goes_by_the_evaluated_weights() -> None:
    method = EFLPrune("l1", threshold={"conv": 3, "fc1": 4})
    run = Run(method, 3, inner=FedAvg(fraction_evaluate=1.0))

    for server_round in range(4):
        weights = run.after[server_round]
        expected = method.begin(run.strategy.layout, weights)[0].plan
        np.testing.assert_array_equal(run.deployed[server_round].alive, expected.alive)
    small = run.strategy.deployable_model(run.result.arrays)
    np.testing.assert_array_equal(
        small.fc2.weight.detach(),
        run.deployed[3].take("fc2.weight", run.arrays["fc2.weight"]),
    )
    assert set(run.row(3, "status", "evaluate")) == {"ok"}


def test_magnitude_masks_single_weights_round_by_round() -> None:
    run = Run(EFLPrune("magnitude", threshold="2x"), 3)

    assert {plan.num_parameters for plan in run.plans} == {437}
    assert all(plan.alive.all() for plan in run.plans)
    dense = run.strategy.cost_of.dense().macs
    assert set(run.row(2, "macs_per_example")) == {dense}


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


def test_restart_also_reaches_an_inner_strategy_with_a_model_of_its_own() -> None:
    inner = FedAvgM(server_momentum=0.0, server_learning_rate=0.5, fraction_evaluate=0)

    run = Run(Structured(k=1.0), 2, inner=inner)

    plan, weight, name = run.plans[1], 0, "fc1.weight"
    assert plan is not run.plans[0]
    average = np.zeros(plan.small_shape(name))
    afresh = rescale_fan_in(arrays_of(make_model()), plan)
    for node in range(NODES):
        small = shrink_with(make_model(), plan, afresh).train()
        sgd(small, node)
        weight += len(node_data(node)[0])
        average += len(node_data(node)[0]) * arrays_of(small)[name]
    fresh = plan.take(name, afresh[name])
    np.testing.assert_allclose(
        plan.take(name, run.arrays[name]), (fresh + average / weight) / 2, atol=1e-6
    )


# --- All of them ---


@pytest.mark.parametrize(
    "name",
    [
        *("random", "l1", "autoflip", "structured-restart"),
        *(f"eflprune-{criterion}" for criterion in ("l2", "similarity", "bn")),
    ],
)
def test_methods_by_name_take_part(name: str) -> None:
    run = Run(named(name), 3, inner=FedAdam(eta=0.01))

    assert {row["status"] for row in node_rows(run.rows)} == {"ok"}


def test_a_method_from_outside_explores_asks_for_gradients_and_restarts() -> None:
    run = Run(Lottery(), 4)

    rows = node_rows(run.rows)
    assert {row["status"] for row in rows} == {"ok"}
    assert len(run.row(1, "node", "explore")) == len(run.row(1, "node")) == NODES
    alive = [int(plan.alive.sum()) for plan in run.plans]
    assert alive == [12, 12, 10, 10]  # of 14, one a group at a time
    configs = [config_of(message) for _, message in run.grid.log]
    payloads = [c.get("autoflip-payload", "values") for c in configs]
    assert [payloads.count(p) for p in ("deviations", "gradients")] == [NODES, NODES]
    for name, array in arrays_of(make_model()).items():  # round 3 began afresh
        np.testing.assert_array_equal(run.sent[2][name], array)
    assert (run.sent[1]["fc1.weight"] != run.sent[2]["fc1.weight"]).any()


def test_a_method_that_never_trains_is_named() -> None:
    class Curious(Lottery):
        def learn(self, state: Any, done: Any) -> Any:
            return state, done.weights

    with pytest.raises(AutoFlipError, match=r"Curious gave 10 orders in round 1"):
        Run(Curious(), 1)
