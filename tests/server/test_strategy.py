"""AutoFlip around real Flower strategies, on an in-process grid that serialises."""

import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from federation import (
    EXAMPLE,
    RANDOM,
    Client,
    TinyNet,
    exploring,
    initial,
    make_model,
    plain_app,
    sgd,
)
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Strategy,
)
from grid import LocalGrid
from torch import nn

from flwr_autoflip import (
    AutoFlip,
    AutoFlipError,
    AutoFlipWarning,
    autoflip_mod,
    client_app,
)
from flwr_autoflip.graph.shrink import arrays_of, shrink
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods import (
    AuthorsCode,
    EFLPrune,
    Guided,
    Paper,
    PruneFL,
)

NODES = 4
INNERS: dict[str, Callable[[], Strategy]] = {
    "fedavg": lambda: FedAvg(fraction_evaluate=0.5),
    "fedavgm": lambda: FedAvgM(server_momentum=0.9, fraction_evaluate=0.5),
    "fedadam": lambda: FedAdam(eta=0.01, beta_1=0.9, beta_2=0.99),
    "dp": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(fraction_evaluate=0.5),
        noise_multiplier=0.01,
        clipping_norm=1.0,
        num_sampled_clients=NODES,
    ),
}


def build(strategy: Strategy | None = None, **options: Any) -> AutoFlip:
    given = {"model": TinyNet(), "example_input": EXAMPLE, **exploring(), **options}
    return AutoFlip(strategy or FedAvg(), **given)


def run(
    strategy: AutoFlip, rounds: int = 3, app: ClientApp | None = None, **kwargs: Any
) -> tuple[dict[str, np.ndarray], LocalGrid]:
    fault = kwargs.pop("fault", None)
    grid = LocalGrid(app or client_app(Client), NODES, fault)
    result = strategy.start(grid, initial(), num_rounds=rounds, **kwargs)
    return {name: a.numpy() for name, a in result.arrays.items()}, grid


# --- Any inner strategy ---


@pytest.mark.parametrize("name", INNERS)
def test_what_nobody_trained_keeps_its_value_exactly(name: str) -> None:
    strategy = build(INNERS[name](), method=RANDOM)

    arrays, _ = run(strategy)

    train = [row for row in strategy.ledger.rows if row["phase"] == "train"]
    assert [row["status"] for row in train] == ["ok"] * 3 * NODES
    before, plan = arrays_of(make_model()), strategy.deployable_plan
    moved = 0
    for spec in strategy.layout.tensors:
        assert arrays[spec.name].dtype == np.dtype(spec.dtype)
        kept = plan.dense_mask(spec.name)
        np.testing.assert_array_equal(
            arrays[spec.name][~kept], before[spec.name][~kept], err_msg=spec.name
        )
        moved += int((arrays[spec.name][kept] != before[spec.name][kept]).sum())
    assert moved > 0.9 * plan.num_parameters


def test_dense_is_plain_fedavg() -> None:
    plain = FedAvg(fraction_evaluate=0.0)
    expected = plain.start(LocalGrid(plain_app(), NODES), initial(), num_rounds=3)

    arrays, _ = run(build(FedAvg(fraction_evaluate=0.0), method="dense"))

    for name, array in expected.arrays.items():
        np.testing.assert_allclose(arrays[name], array.numpy(), atol=1e-6, err_msg=name)


def test_exploring_is_a_round_of_the_inner_strategy() -> None:
    inner = FedAvg(fraction_evaluate=0.0)
    one_round = inner.start(LocalGrid(plain_app(), NODES), initial(), num_rounds=1)
    method = Guided(threshold="cumulative:0.5", rescale=False)
    strategy = build(FedAvg(fraction_evaluate=0.0), method=method)

    arrays, _ = run(strategy, rounds=1)

    for name, array in one_round.arrays.items():
        np.testing.assert_allclose(arrays[name], array.numpy(), atol=1e-6, err_msg=name)
    rows = node_rows(strategy.ledger.rows)
    assert {(row["round"], row["phase"]) for row in rows} == {(1, "train")}
    assert {row["parameters"] for row in rows} == {strategy.layout.num_parameters}
    assert strategy.deployable_plan.num_parameters < strategy.layout.num_parameters


def test_fedavgm_and_we_agree_on_the_global_model() -> None:
    inner = FedAvgM(server_momentum=0.9, fraction_evaluate=0.0)

    arrays, _ = run(build(inner))

    assert inner.current_arrays is not None
    for name, array in inner.current_arrays.items():
        np.testing.assert_array_equal(arrays[name], array.numpy())


def test_one_round_by_hand() -> None:
    """Two nodes' small models, trained here and averaged by examples."""
    strategy = build(FedAvg(fraction_evaluate=0.0), method=RANDOM)

    arrays, _ = run(strategy, rounds=1)

    plan, total, weight = strategy.deployable_plan, {}, 0
    for node in range(NODES):
        small = shrink(make_model(), plan).train()
        sgd(small, node)
        count = 12 + node % 3
        weight += count
        for name, array in arrays_of(small).items():
            total[name] = total.get(name, 0) + count * array.astype(float)
    for name in ("conv.weight", "norm.running_mean", "fc1.weight", "fc2.bias"):
        np.testing.assert_allclose(
            plan.take(name, arrays[name]), total[name] / weight, rtol=1e-5, atol=1e-6
        )


# --- Methods and options ---


def test_paper_zeroes_what_nobody_trained() -> None:
    strategy = build(method=Paper(threshold=0.4, epochs=3))

    arrays, _ = run(strategy, rounds=1)

    plan = strategy.deployable_plan
    mask = plan.dense_mask("fc1.weight")
    assert 0 < mask.sum() < mask.size
    np.testing.assert_array_equal(arrays["fc1.weight"][~mask], 0)
    explore = [row for row in strategy.ledger.rows if row["phase"] == "explore"]
    assert [row["examples"] for row in explore] == [
        3 * (12 + (row["node"] - 100) % 3) for row in explore
    ]


def test_requests_with_epochs_are_built_once() -> None:
    _, grid = run(build(method=Paper(threshold=0.4, epochs=3)), rounds=1)

    sent = [
        message.content
        for _, message in grid.log
        if any("local-epochs" in c for c in message.content.config_records.values())
    ]
    assert len(sent) == NODES  # exploring
    assert len({id(content) for content in sent}) == 1


def test_authors_code_trains_everything_from_masked_weights() -> None:
    strategy = build(method=AuthorsCode(ratio=0.3, epochs=1))

    arrays, grid = run(strategy, rounds=2)

    plan = strategy.deployable_plan
    kept = plan.num_parameters / strategy.layout.num_parameters
    assert 0.65 < kept < 0.75
    down = [m for n, m in grid.log if m.metadata.message_type == "train"][-1]
    (record,) = down.content.array_records.values()
    (values,) = record.values()
    assert values.shape == (plan.num_values,)
    mask = plan.dense_mask("fc1.weight")
    assert (arrays["fc1.weight"][~mask] != 0).any()  # zeros grew back


def test_papers_participants_make_a_plan_of_their_own_each_round() -> None:
    strategy = build(
        FedAvg(fraction_train=0.6, fraction_evaluate=0.0),
        method=Paper(threshold=0.4, epochs=1),
    )
    late = LocalGrid(client_app(Client), NODES + 2)
    everyone = late.get_node_ids
    asked = 0

    def connected() -> Any:  # the last node comes after all have explored
        nonlocal asked
        asked += 1
        nodes = sorted(everyone())
        return nodes if asked > 6 else nodes[:-1]

    late.get_node_ids = connected  # type: ignore[method-assign]
    strategy.start(late, initial(), num_rounds=8)

    explored = [r for r in strategy.ledger.rows if r["phase"] == "explore"]
    assert len(explored) == len({row["node"] for row in explored}) == NODES + 2
    assert {row["round"] for row in explored} > {1}
    digests = {r["digest"] for r in strategy.ledger.rows if r["phase"] == "plan"}
    assert len(digests) > 2


def test_sums_by_unit_choose_nearly_the_same_units_for_few_bytes() -> None:
    whole = build()
    units = build(method=Guided(threshold="cumulative:0.5", report="units"))

    run(whole, rounds=1)
    run(units, rounds=1)

    a, b = whole.deployable_plan.alive, units.deployable_plan.alive
    assert (a == b).mean() > 0.85
    explore = [r for r in node_rows(units.ledger.rows) if r["phase"] == "explore"]
    assert len(explore) == NODES
    assert max(row["bytes_up"] for row in explore) < 2000


class Backwards(LocalGrid):
    """Gives the last node's reply first."""

    def send_and_receive(self, messages: Any, *, timeout: Any = None) -> Any:
        return list(super().send_and_receive(messages, timeout=timeout))[::-1]


@pytest.mark.parametrize("inner", ["fedavg", "fedadam"])
def test_who_is_faster_does_not_change_a_bit(inner: str) -> None:
    results = []
    for grid in (LocalGrid, Backwards):
        random.seed(0)
        result = build(INNERS[inner]()).start(
            grid(client_app(Client), NODES), initial(), num_rounds=3
        )
        results.append({name: a.numpy() for name, a in result.arrays.items()})

    for name, array in results[0].items():
        np.testing.assert_array_equal(results[1][name], array)


@pytest.mark.parametrize("app", ["client", "numpy", "mod"])
def test_eight_bits_end_where_thirty_two_do(app: str) -> None:
    apps = {
        "client": client_app(Client),
        "numpy": ClientApp(client_fn=lambda context: Client(context).to_client()),
        "mod": plain_app([autoflip_mod]),
    }
    strategies = [
        build(FedAvg(fraction_evaluate=0.5), **how)
        for how in ({}, {"value_dtype": "int8"})
    ]

    wide, narrow = (run(one, rounds=4, app=apps[app])[0] for one in strategies)

    rows = [r for one in strategies for r in one.ledger.rows if r["phase"] == "train"]
    assert {row["status"] for row in rows} == {"ok"}
    up = [row["bytes_up"] for row in rows]
    values = strategies[0].deployable_plan.num_values
    assert up[0] - up[-1] > 2.3 * values
    start = arrays_of(make_model())
    for name in ("conv.weight", "fc1.weight", "fc2.weight"):
        moved = np.linalg.norm(wide[name] - start[name])
        assert np.linalg.norm(wide[name] - narrow[name]) < 0.1 * moved
    assert narrow["norm.running_var"].min() > 0


def test_gradients_are_sent_in_floats_whatever_values_are() -> None:
    method = PruneFL(threshold="2x", interval=2)
    strategy = build(FedAvg(fraction_evaluate=0.0), method=method, value_dtype="int8")

    run(strategy, rounds=3)

    train = [row for row in strategy.ledger.rows if row["phase"] == "train"]
    assert {row["status"] for row in train} == {"ok"}
    assert len(train) == 1 + 2 * NODES


# --- What travels ---


def test_plan_travels_with_every_request_and_uploads_carry_no_mask() -> None:
    strategy = build(FedAvg(fraction_evaluate=0.0), method=RANDOM)

    run(strategy, rounds=3)

    rows = [r for r in strategy.ledger.rows if r["phase"] == "train"]
    assert len({row["plan_bytes"] for row in rows}) == 1
    payload = 4 * strategy.deployable_plan.num_values
    assert all(r["bytes_down"] <= payload + r["plan_bytes"] + 1500 for r in rows)
    assert all(r["bytes_up"] <= payload + 2000 for r in rows)


def test_bytes_are_those_of_the_serialised_message() -> None:
    strategy = build()

    _, grid = run(strategy, rounds=1)

    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    node, message = grid.log[0]
    objects = get_all_nested_objects(message.content)
    size = sum(len(o.deflate()) + len(key) for key, o in objects.items())
    row = next(r for r in node_rows(strategy.ledger.rows) if r["node"] == node)
    assert row["bytes_down"] == size


def test_clients_really_build_the_small_model() -> None:
    strategy = build(method=RANDOM)

    run(strategy, rounds=1)

    plan = strategy.deployable_plan
    rows = [r for r in strategy.ledger.rows if r["phase"] == "train"]
    assert {r["parameters"] for r in rows} == {plan.num_parameters}
    assert {r["macs_per_example"] for r in rows} == {int(plan.macs)}
    assert rows[0]["macs"] == 3 * int(plan.macs) * rows[0]["examples"]
    assert rows[0]["examples"] == 2 * (12 + (rows[0]["node"] - 100) % 3)


def test_evaluation_runs_on_the_small_model() -> None:
    strategy = build(FedAvg(fraction_evaluate=1.0))

    grid = LocalGrid(client_app(Client), NODES)
    result = strategy.start(grid, initial(), num_rounds=1)

    metrics = result.evaluate_metrics_clientapp[1]
    assert round(metrics["parameters"]) == strategy.deployable_plan.num_parameters
    rows = [r for r in strategy.ledger.rows if r["phase"] == "evaluate"]
    assert all(r["eval_examples"] > 0 and r["examples"] == 0 for r in rows)


@pytest.mark.parametrize("dense", [False, True])
def test_server_evaluates_what_would_be_deployed(dense: bool) -> None:
    method = EFLPrune("l1", threshold="2x", evaluates_dense=dense)
    strategy = build(FedAvg(fraction_evaluate=0.0), method=method)
    seen: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        zeros = sum(int((a.numpy() == 0).sum()) for a in arrays.values())
        seen.append(zeros)
        return MetricRecord({"zeros": zeros})

    run(strategy, rounds=1, evaluate_fn=evaluate)

    server = [r for r in strategy.ledger.rows if r["phase"] == "server"]
    assert [r["round"] for r in server] == [0, 1]
    assert len(seen) == (4 if dense else 2)
    assert server[1]["metrics"]["zeros"] == max(seen[len(seen) // 2 :])
    assert server[1]["metrics"].get("dense-zeros") == (seen[-1] if dense else None)
    assert seen[-1] < seen[-2] if dense else min(seen) > 0
    assert server[1]["plan"]["units"] == {
        name: len(kept) for name, kept in strategy.deployable_plan.keep.items()
    }


def test_deployable_model_computes_what_the_masked_one_does() -> None:
    strategy = build(method=Paper(threshold=0.5, epochs=1))

    arrays, _ = run(strategy, rounds=1)

    record = ArrayRecord({name: Array(a) for name, a in arrays.items()})
    small = strategy.deployable_model(record)
    masked = make_model().eval()
    state = strategy.deployable_plan.apply(arrays)
    masked.load_state_dict({n: torch.as_tensor(a) for n, a in state.items()})
    images = torch.randn(5, 1, 8, 8)
    np.testing.assert_allclose(
        small(images).detach(), masked(images).detach(), atol=1e-5
    )
    assert sum(p.numel() for p in small.parameters()) < strategy.layout.num_parameters


# --- Nodes that misbehave ---


def _tampered(kind: str, message: Message) -> Message | None:
    if kind == "missing":
        return None
    if kind == "failed":
        return Message(error=Error(1, "out of memory"), metadata=message.metadata)
    (place,) = message.content.array_records
    ((name, array),) = message.content[place].items()
    values = np.array(array.numpy())
    metadata = dict(message.content["autoflip"])
    metrics = dict(message.content["metrics"])
    if kind == "length":
        values = values[:-1]
    elif kind == "nan":
        values[3] = np.nan
    elif kind == "diverged":
        values *= 1e6
    elif kind == "digest":
        metadata["autoflip-plan-digest"] = bytes(16)
    elif kind == "model":
        metadata["autoflip-parameters"] = 7
    elif kind == "weight":
        metrics["num-examples"] = 0
    message.content[place] = ArrayRecord({name: Array(values)})
    message.content["autoflip"] = ConfigRecord(metadata)
    message.content["metrics"] = MetricRecord(metrics)
    return message


@pytest.mark.parametrize(
    "kind",
    "missing failed length nan diverged digest model weight".split(),  # noqa: SIM905
)
def test_a_bad_reply_is_refused_and_the_round_goes_on(kind: str) -> None:
    strategy = build(FedAvg(fraction_evaluate=0.0), method=RANDOM)
    good = build(FedAvg(fraction_evaluate=0.0), method=RANDOM)
    bad_node = 100

    def fault(node: int, reply: Message) -> Message | None:
        return _tampered(kind, reply) if node == bad_node else reply

    arrays, _ = run(strategy, rounds=1, fault=fault)
    expected, _ = run(good, rounds=1, fault=lambda n, m: None if n == bad_node else m)

    row = next(r for r in node_rows(strategy.ledger.rows) if r["node"] == bad_node)
    assert row["status"] == (kind if kind in ("missing", "failed") else "refused")
    assert row["reason"]
    statuses = [r["status"] for r in node_rows(strategy.ledger.rows)]
    assert statuses.count("ok") == NODES - 1
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_a_node_that_restarts_loses_nothing() -> None:
    strategy = build(FedAvg(fraction_evaluate=0.0), method=RANDOM)
    grid = LocalGrid(client_app(Client), NODES)

    def forget(node: int, reply: Message) -> Message | None:
        grid.contexts[100].state.clear()
        return reply

    grid.fault = forget
    strategy.start(grid, initial(), num_rounds=3)

    rows = node_rows(strategy.ledger.rows)
    assert {row["status"] for row in rows} == {"ok"}


def test_strangers_and_repetitions_are_ignored() -> None:
    strategy = build(FedAvg(fraction_evaluate=0.0), method=RANDOM)
    grid = LocalGrid(client_app(Client), NODES)
    send = grid.send_and_receive

    def twice(messages: Any, *, timeout: float | None = None) -> list[Message]:
        return 2 * list(send(messages))

    grid.send_and_receive = twice  # type: ignore[method-assign]

    strategy.start(grid, initial(), num_rounds=2)

    assert len(node_rows(strategy.ledger.rows)) == 2 * NODES


def test_a_first_round_that_is_lost_is_explored_again() -> None:
    strategy = build(FedAvg(fraction_evaluate=0.0))
    calls = 0

    def fault(node: int, reply: Message) -> Message | None:
        nonlocal calls
        calls += 1
        return None if calls <= NODES else reply

    run(strategy, rounds=3, fault=fault)

    sizes = {
        row["round"]: row["parameters"]
        for row in strategy.ledger.rows
        if row["phase"] == "train" and row["status"] == "ok"
    }
    assert sizes[2] == strategy.layout.num_parameters
    assert sizes[3] == strategy.deployable_plan.num_parameters < sizes[2]


def test_no_explorer_at_all_is_one_clear_error() -> None:
    with pytest.raises(AutoFlipError, match=r"no node gave a valid report .* no reply"):
        run(build(method="paper"), fault=lambda node, message: None)


# --- Wrong options and inputs, before any node is asked ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_dtype": "int4"}, "value_dtype must be"),
        ({"method": "magic"}, "method must be"),
        ({"method": "eflprune-l3"}, "did you mean 'eflprune-l"),
        ({"method": 7}, "method must be"),
        ({"method": "dense", "macs": 0.5}, "does nothing here"),
        ({"method": "l1", "macs": 1.5}, r"in \(0, 1\]"),
        ({"method": RANDOM, "macs": 0.5}, "does nothing here|leave it out"),
        ({"ignored_layers": ("nowhere",)}, "no module named"),
        ({"strategy": FedAvg(fraction_train=0.0)}, "fraction_train is 0"),
        ({"example_input": torch.zeros(1, 3)}, "forward fails on example_input"),
        (
            {"model": nn.Linear(64, 2), "example_input": torch.zeros(1, 64)},
            "no prunable unit",
        ),
    ],
)
def test_wrong_options_say_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AutoFlipError, match=message):
        build(**options)


def test_foreign_initial_arrays_are_refused_before_contact() -> None:
    strategy, grid = build(), LocalGrid(client_app(Client), NODES)
    arrays = initial()
    del arrays["fc1.bias"]
    arrays["conv.weight"] = Array(np.zeros((6, 1, 5, 5), np.float32))

    with pytest.raises(AutoFlipError, match=r"fc1.bias: expected \(8,\), got nothing"):
        strategy.start(grid, arrays, num_rounds=1)

    assert grid.log == []


def test_one_explorer_only_warns() -> None:
    one = FedAvg(fraction_train=0.25, min_train_nodes=1, min_available_nodes=1)

    with pytest.warns(AutoFlipWarning, match="one explorer only"):
        run(build(one), rounds=1)


def test_callers_arrays_stay_as_they_are() -> None:
    arrays, grid = initial(), LocalGrid(client_app(Client), NODES)

    build().start(grid, arrays, num_rounds=1)

    for name, array in arrays_of(make_model()).items():
        np.testing.assert_array_equal(arrays[name].numpy(), array)


def test_nodes_that_do_not_come_are_waited_for_no_longer_than_the_timeout() -> None:
    strategy = build(FedAvg(min_available_nodes=NODES + 2))
    grid = LocalGrid(client_app(Client), NODES)
    started = time.monotonic()

    with pytest.raises(AutoFlipError, match=r"4 of 6 nodes are .* after 0.2 seconds"):
        strategy.start(grid, initial(), num_rounds=1, timeout=0.2)

    assert 0.2 <= time.monotonic() - started < 5
    assert grid.log == []
