"""An app that exists already takes part by one word on each side."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from federation import (
    EXAMPLE,
    Client,
    TinyNet,
    guided,
    initial,
    make_model,
    numpy_app,
    plain_app,
    sgd,
)
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid

from examples.inprocess import over_the_wire
from flwr_autoflip import AutoFlip, AutoFlipError, autoflip_mod, client_app
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods import PruneFl

APPS = {"message": plain_app, "numpy": numpy_app}


def build(inner: Any = None, **options: Any) -> AutoFlip:
    options = guided(0.5, **options)
    return AutoFlip(inner or FedAvg(), TinyNet(), EXAMPLE, **options)


@pytest.mark.parametrize("api", ["message", "numpy"])
def test_an_unchanged_app_takes_part(api: str) -> None:
    strategy = build(client_api=api)

    result = strategy.start(
        LocalGrid(APPS[api]([autoflip_mod]), 3), initial(), num_rounds=2
    )

    rows = node_rows(strategy.ledger.rows)
    assert {r["status"] for r in rows} == {"ok"}
    train = [r for r in rows if r["phase"] == "train"]
    plan = strategy.deployable_plan()
    assert plan.num_parameters < strategy.layout.num_parameters
    assert max(r["bytes_up"] for r in train) < 4 * plan.num_values + 2000
    assert {r["examples"] for r in train} == {12, 13, 14}  # what the app reports
    # It trained its dense model, and the ledger says so.
    assert {r["parameters"] for r in train} == {strategy.layout.num_parameters}
    assert result.evaluate_metrics_clientapp[2]["loss"] > 0


@pytest.mark.parametrize("api", ["message", "numpy"])
@pytest.mark.parametrize("payload", ["update", "weights"])
def test_exploring_is_the_apps_own_training(api: Any, payload: Any) -> None:
    strategy = build(client_api=api, exploration_payload=payload)

    strategy.start(LocalGrid(APPS[api]([autoflip_mod]), 3), initial(), num_rounds=0)

    for node in range(3):
        model = make_model()
        sgd(model.train(), node)
        for name, value in model.named_parameters():
            moved = (arrays_of(make_model())[name] - value.detach().numpy()) ** 2
            reported = strategy.reports[100 + node][name]
            np.testing.assert_allclose(reported, moved, rtol=5e-3, atol=1e-10)


def test_the_app_gets_what_a_plain_strategy_sends() -> None:
    seen: list[RecordDict] = []

    def spy(message: Any, context: Any, call_next: Any) -> Message:
        seen.append(over_the_wire(message.content))
        return call_next(message, context)

    names = {"arrayrecord_key": "model", "configrecord_key": "settings"}
    for wrap in (lambda inner: inner, lambda inner: build(inner, policy="dense")):
        app = ClientApp(mods=[autoflip_mod, spy])
        app.train()(lambda message, context: Message(Error(1), reply_to=message))
        with suppress(AutoFlipError):  # no node trains
            wrap(FedAvg(**names)).start(
                LocalGrid(app, 2),
                initial(),
                num_rounds=1,
                train_config=ConfigRecord({"lr": 0.1, "tags": ["a", "b"]}),
            )

    plain, ours = seen[0], seen[len(seen) // 2]
    assert list(plain) == list(ours) == ["model", "settings"]
    assert dict(ours["settings"]) == dict(plain["settings"])
    assert list(ours["model"]) == list(plain["model"])
    for name, array in plain["model"].items():
        assert ours["model"][name].dtype == array.dtype
        np.testing.assert_array_equal(ours["model"][name].numpy(), array.numpy())


def test_an_apps_own_names_metrics_and_array_order() -> None:
    app = ClientApp(mods=[autoflip_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = TinyNet()
        model.load_state_dict(message.content["model"].to_torch_state_dict())
        node = int(context.node_config["partition-id"])
        sgd(model.train(), node)
        backwards = dict(reversed(model.state_dict().items()))
        metrics = {"samples": 10 + node, "loss": [0.5, float(node)], "steps": 2}
        content = {
            "mine": ArrayRecord(backwards),
            "numbers": MetricRecord(metrics),
            "notes": ConfigRecord({"device": "a phone"}),
        }
        return Message(RecordDict(content), reply_to=message)

    inner = FedAvg(
        fraction_evaluate=0.0, arrayrecord_key="model", weighted_by_key="samples"
    )
    strategy = build(inner)

    result = strategy.start(LocalGrid(app, 3), initial(), num_rounds=1)

    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
    assert sorted(row["examples"] for row in node_rows(strategy.ledger.rows)[-3:]) == [
        10,
        11,
        12,
    ]
    metrics = result.train_metrics_clientapp[1]
    assert metrics["steps"] == 2
    np.testing.assert_allclose(metrics["loss"], [0.5, (11 + 2 * 12) / 33])
    changed = result.arrays["fc2.weight"].numpy() != initial()["fc2.weight"].numpy()
    assert changed.any()


def test_an_app_that_keeps_or_replaces_its_state() -> None:
    app = ClientApp(mods=[autoflip_mod])
    inner = plain_app()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        rounds = context.state.metric_records.get("mine", MetricRecord({"rounds": 0}))
        assert set(context.state) <= {"mine"}  # nothing of ours in sight
        count = int(rounds["rounds"]) + 1  # type: ignore[arg-type]
        context.state = RecordDict({"mine": MetricRecord({"rounds": count})})
        reply = inner(message, context)
        reply.content["metrics"]["rounds"] = count
        return reply

    strategy = build(FedAvg(fraction_evaluate=0.0))

    result = strategy.start(LocalGrid(app, 3), initial(), num_rounds=3)

    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
    assert result.train_metrics_clientapp[3]["rounds"] == 4  # and one exploring
    last = [row for row in node_rows(strategy.ledger.rows) if row["round"] == 3]
    assert {row["plan_bytes"] for row in last} == {16}  # nobody lost the plan


def test_an_app_that_raises_keeps_the_plan() -> None:
    app = plain_app([autoflip_mod, _fails_once()])
    strategy = build(FedAvg(fraction_evaluate=0.0), policy="random", threshold="2x")

    strategy.start(LocalGrid(app, 2), initial(), num_rounds=2)

    rows = node_rows(strategy.ledger.rows)
    assert sorted(row["status"] for row in rows) == ["failed", "ok", "ok", "ok"]
    assert "no disk" in next(row["reason"] for row in rows if row["reason"])


def _fails_once() -> Any:
    calls = iter(range(100))

    def mod(message: Any, context: Any, call_next: Any) -> Message:
        if next(calls) == 0:
            raise OSError("no disk")
        return call_next(message, context)

    return mod


def test_the_app_sees_dense_masked_arrays() -> None:
    seen: list[dict[str, np.ndarray]] = []

    def spy(message, context, call_next):  # type: ignore[no-untyped-def]
        arrays = message.content["arrays"]
        seen.append({name: a.numpy() for name, a in arrays.items()})
        return call_next(message, context)

    strategy = AutoFlip(
        FedAvg(fraction_evaluate=0.0),
        TinyNet(),
        EXAMPLE,
        policy="random",
        threshold="2x",
    )
    app = plain_app([autoflip_mod, spy])

    strategy.start(LocalGrid(app, 3), initial(), num_rounds=1)

    plan = strategy.deployable_plan()
    for spec in strategy.layout.tensors:
        gone = ~plan.dense_mask(spec.name)
        assert seen[0][spec.name].shape == spec.shape
        np.testing.assert_array_equal(seen[0][spec.name][gone], 0)


def test_messages_of_others_pass_through() -> None:
    app = plain_app([autoflip_mod])

    result = FedAvg().start(LocalGrid(app, 3), initial(), num_rounds=1)

    assert len(result.arrays) == len(initial())


def test_a_mod_cannot_see_gradients_and_says_so() -> None:
    strategy = AutoFlip(
        FedAvg(fraction_evaluate=0.0), TinyNet(), EXAMPLE, policy=PruneFl(interval=1)
    )

    with pytest.raises(AutoFlipError, match="use AutoFlipClient"):
        strategy.start(LocalGrid(plain_app([autoflip_mod]), 3), initial(), num_rounds=1)

    train = [r for r in strategy.ledger.rows if r["phase"] == "train"]
    assert {r["status"] for r in train} == {"failed"}
    assert "use AutoFlipClient" in train[0]["reason"]


def test_an_apps_error_of_many_lines_is_one_line_in_the_ledger() -> None:
    def broken(message, context, call_next):  # type: ignore[no-untyped-def]
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("Error(s) in loading state_dict:\n\tsize mismatch\n")
        return call_next(message, context)

    strategy = AutoFlip(
        FedAvg(fraction_evaluate=0.0), TinyNet(), EXAMPLE, policy="dense"
    )
    app = plain_app([autoflip_mod, broken])

    strategy.start(LocalGrid(app, 3), initial(), num_rounds=1)

    reasons = {r["node"]: r["reason"] for r in node_rows(strategy.ledger.rows)}
    expected = "RuntimeError: Error(s) in loading state_dict: size mismatch"
    assert reasons == {100: "", 101: expected, 102: ""}


@pytest.mark.parametrize(
    ("app", "said", "hint"),
    [
        (numpy_app([autoflip_mod]), "message", r"client_api='numpy'\)"),
        (plain_app([autoflip_mod]), "numpy", "leave client_api='numpy' out"),
        (client_app(Client, mods=[autoflip_mod]), "message", "for dense clients only"),
    ],
)
def test_the_wrong_word_says_which_is_right(app: Any, said: Any, hint: str) -> None:
    with pytest.raises(AutoFlipError, match=hint):
        build(client_api=said).start(LocalGrid(app, 2), initial(), num_rounds=1)


@pytest.mark.parametrize("kind", ["part", "shape", "two"])
def test_arrays_that_are_not_the_model_are_refused(kind: str) -> None:
    def cut(message: Any, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        arrays = reply.content["arrays"]
        if kind == "part":
            del arrays["fc2.bias"]
        elif kind == "shape":
            arrays["fc2.bias"] = Array(np.zeros(4, np.float32))
        else:
            reply.content["more"] = ArrayRecord(dict(arrays))
        return reply

    strategy = build(FedAvg(fraction_evaluate=0.0), policy="random", threshold="2x")

    grid = LocalGrid(plain_app([autoflip_mod, cut]), 2)
    with pytest.raises(AutoFlipError, match="no node's training counted"):
        strategy.start(grid, initial(), num_rounds=1)

    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"failed"}
    wanted = (
        "one ArrayRecord, got 2" if kind == "two" else "return the whole state_dict"
    )
    assert wanted in node_rows(strategy.ledger.rows)[0]["reason"]
