"""An app that exists already takes part by one word on each side."""

from typing import Any

import numpy as np
import pytest
from asked import DENSE, LAYOUT, MASKED, SMALL, WEIGHTS, Asked
from federation import (
    EXAMPLE,
    Client,
    TinyNet,
    initial,
    numpy_app,
    plain_app,
    sgd,
)
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid

from flwr_autoflip import AutoFlip, autoflip_mod, client_app
from flwr_autoflip.graph.pack import pack
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.wire import report_of

APPS: dict[str, Any] = {"message": plain_app, "numpy": numpy_app}


def trained(node: int, plan: Any = DENSE) -> dict[str, np.ndarray]:
    """What the app makes of a masked dense model."""
    model = TinyNet()
    masked = plan.apply(WEIGHTS)
    model.load_state_dict(ArrayRecord({n: Array(a) for n, a in masked.items()})
                          .to_torch_state_dict())  # fmt: skip
    sgd(model.train(), node)
    return arrays_of(model)


@pytest.mark.parametrize("plan", [DENSE, SMALL, MASKED])
@pytest.mark.parametrize("api", APPS)
def test_an_unchanged_app_takes_part(api: str, plan: Any) -> None:
    asked = Asked(APPS[api]([autoflip_mod]))

    for _ in range(2):  # the second time the mod knows which API the app speaks
        answers = asked.ask(plan=plan)

        assert [answer.reply.num_examples for answer in answers] == [12, 13, 14]
        for node, answer in enumerate(answers):
            expected = pack(trained(node, plan), plan)
            np.testing.assert_array_equal(answer.reply.values, expected)
            assert answer.reply.metrics["loss"] > 0
    assert max(row["bytes_up"] for row in asked.rows) < 4 * plan.num_values + 2000
    assert [row["examples"] for row in asked.rows] == [12, 13, 14] * 2
    # It trained its dense model, and the ledger says so.
    assert {row["parameters"] for row in asked.rows} == {LAYOUT.num_parameters}
    evaluated = asked.ask("evaluate", plan=plan)
    assert all(answer.reply.metrics["loss"] > 0 for answer in evaluated)
    assert max(row["bytes_up"] for row in asked.rows[-3:]) < 1500  # without arrays
    assert not asked.reasons


@pytest.mark.parametrize("payload", ["deviations", "units"])
@pytest.mark.parametrize("api", APPS)
def test_exploring_is_the_apps_own_training(api: str, payload: Any) -> None:
    answers = Asked(APPS[api]([autoflip_mod])).ask("explore", DENSE, payload=payload)

    own = Asked(client_app(Client)).ask("explore", DENSE, payload=payload)
    for answer, same in zip(answers, own, strict=True):
        report, expected = (report_of(a.reply, a.instructions) for a in (answer, same))
        assert list(report) == list(expected)
        for name, moved in expected.items():
            np.testing.assert_allclose(report[name], moved, rtol=5e-3, atol=1e-10)


def test_a_numpy_app_is_found_out_once_and_before_any_work() -> None:
    tried: list[str] = []

    def spy(message: Any, context: Any, call_next: Any) -> Message:
        tried.append(next(iter(message.content)))
        return call_next(message, context)

    asked = Asked(numpy_app([autoflip_mod, spy]), 1)
    asked.ask()
    asked.ask("evaluate")

    assert tried == ["arrays", "fitins.parameters", "evaluateins.parameters"]
    assert not asked.reasons


def test_the_app_gets_what_a_plain_strategy_sends() -> None:
    seen: list[RecordDict] = []

    def spy(message: Any, context: Any, call_next: Any) -> Message:
        seen.append(message.content)
        raise RuntimeError("enough")

    config = {"lr": 0.1, "tags": ["a", "b"]}
    content = RecordDict({"model": ArrayRecord(), "settings": ConfigRecord(config)})
    app = ClientApp(mods=[autoflip_mod, spy])
    app.train()(lambda message, context: message)
    asked = Asked(app, 1)
    asked.ask(plan=DENSE, content=content)

    assert list(seen[0]) == ["model", "settings"]
    assert dict(seen[0]["settings"]) == config
    assert list(seen[0]["model"]) == list(WEIGHTS)
    for name, array in seen[0]["model"].items():
        np.testing.assert_array_equal(array.numpy(), WEIGHTS[name], strict=True)
    asked.ask(plan=MASKED)
    for name, array in seen[1]["arrays"].items():
        mask = MASKED.dense_mask(name)
        np.testing.assert_array_equal(array.numpy(), np.where(mask, WEIGHTS[name], 0))


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
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, method="random", macs=0.5)

    result = strategy.start(LocalGrid(app, 3), initial(), num_rounds=1)

    rows = node_rows(strategy.ledger.rows)
    assert {row["status"] for row in rows} == {"ok"}
    assert sorted(row["examples"] for row in rows) == [10, 11, 12]
    metrics = result.train_metrics_clientapp[1]
    assert metrics["steps"] == 2
    np.testing.assert_allclose(metrics["loss"], [0.5, (11 + 2 * 12) / 33])
    changed = result.arrays["fc2.weight"].numpy() != initial()["fc2.weight"].numpy()
    assert changed.any()


@pytest.mark.parametrize("api", APPS)
def test_an_app_that_keeps_or_replaces_its_state(api: str) -> None:
    def own(message: Message, context: Context, call_next: Any) -> Message:
        rounds = context.state.metric_records.get("mine", MetricRecord({"rounds": 0}))
        assert set(context.state) <= {"mine"}  # nothing of ours in sight
        reply = call_next(message, context)
        count = int(rounds["rounds"]) + 1  # type: ignore[arg-type]
        context.state = RecordDict({"mine": MetricRecord({"rounds": count})})
        return reply

    asked = Asked(APPS[api]([autoflip_mod, own]), 1)
    for _ in range(3):
        assert asked.ask(dtype="int8")

    (context,) = asked.grid.contexts.values()
    assert context.state["mine"]["rounds"] == 3
    assert "autoflip-residual" in context.state


def test_messages_of_others_pass_through() -> None:
    app = plain_app([autoflip_mod])

    result = FedAvg().start(LocalGrid(app, 3), initial(), num_rounds=1)

    assert len(result.arrays) == len(initial())


# --- What cannot be done says so ---


def reason(mods: list[Any], kind: str = "message", **options: Any) -> str:
    config = options.pop("node", {})
    asked = Asked(APPS[kind](mods), 1, **config)
    assert asked.ask(**options) == []
    (why,) = asked.reasons
    return str(why)


def test_what_a_mod_cannot_do_says_so() -> None:
    gradients = reason([autoflip_mod], payload="gradients")
    assert "asks for gradients, which a mod cannot see; use AutoFlipClient" in gradients
    budget = reason([autoflip_mod], node={"autoflip-budget": "macs:0.5"})
    assert "a mod cannot keep the app from training the dense model" in budget
    client = Asked(client_app(Client, mods=[autoflip_mod]), 1)
    assert client.ask() == []
    assert "for dense clients only" in client.reasons[0]


def test_an_apps_error_of_many_lines_is_one_line_in_the_ledger() -> None:
    def broken(message: Any, context: Any, call_next: Any) -> Message:
        raise RuntimeError("Error(s) in loading state_dict:\n\tsize mismatch\n")

    expected = "RuntimeError: Error(s) in loading state_dict: size mismatch"
    assert reason([autoflip_mod, broken]) == expected


def test_an_apps_own_key_error_is_its_own() -> None:
    def broken(message: Any, context: Any, call_next: Any) -> Message:
        raise KeyError("fc9.weight")

    for kind in APPS:
        assert "KeyError: 'fc9.weight'" in reason([autoflip_mod, broken], kind)


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

    wanted = {"two": "one ArrayRecord, got 2"}.get(kind, "return the whole state_dict")
    assert wanted in reason([autoflip_mod, cut])
