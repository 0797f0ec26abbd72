"""The node's side, through our message API and Flower's plain ClientApp."""

import random
from typing import Any

import numpy as np
import pytest
from federation import (
    EXAMPLE,
    Client,
    TinyNet,
    config_of,
    guided,
    initial,
    node_data,
    plain_app,
)
from flwr.app import Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy
from grid import LocalGrid
from torch import nn

from flwr_autoflip import (
    AutoFlip,
    AutoFlipClient,
    AutoFlipError,
    __version__,
    autoflip_mod,
    client_app,
)
from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.codec import VERSION, encode_layout, encode_plan, plan_digest
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.wire.records import to_arrayrecord


def run(app: ClientApp, inner: Strategy, **options: Any) -> tuple[AutoFlip, Any]:
    random.seed(0)  # FedAvg draws nodes from it
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **guided(0.5, **options))
    result = strategy.start(LocalGrid(app, 3), initial(), num_rounds=2)
    return strategy, result


def test_it_is_a_real_numpyclient() -> None:
    assert issubclass(AutoFlipClient, NumPyClient)


@pytest.mark.parametrize("inner", [FedAvg, FedAdam])
def test_plain_clientapp_gives_the_same_result(inner: type[Strategy]) -> None:
    ours = client_app(Client)
    plain = ClientApp(client_fn=lambda context: Client(context).to_client())

    one, by_message = run(ours, inner())
    other, by_numpy = run(plain, inner(), client_api="numpy")

    statuses = {r["status"] for r in node_rows(other.ledger.rows)}
    assert statuses == {"ok"}
    for name, array in by_message.arrays.items():
        np.testing.assert_array_equal(array.numpy(), by_numpy.arrays[name].numpy())
    assert (
        one.ledger.rows[-1]["parameters"] == other.ledger.rows[-1]["parameters"] < 875
    )
    expected = by_message.evaluate_metrics_clientapp[2]
    assert by_numpy.evaluate_metrics_clientapp[2]["loss"] == expected["loss"]


def test_wrong_client_api_is_named() -> None:
    plain = ClientApp(client_fn=lambda context: Client(context).to_client())

    with pytest.raises(AutoFlipError, match="none of 3 explorers"):
        run(plain, FedAvg())


def test_the_model_is_small_and_config_is_the_apps_own() -> None:
    seen: list[tuple[int, bool, dict[str, Any]]] = []

    class Spy(Client):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            size = sum(p.numel() for p in model.parameters())
            seen.append((size, model.training, config))
            return super().train(model, config)

    strategy, _ = run(client_app(Spy), FedAvg(fraction_evaluate=0.0))

    size, training, config = seen[-1]
    assert size == strategy.deployable_plan().num_parameters < 875
    assert training
    assert config == {"server-round": 2}


def test_examples_are_counted_not_believed() -> None:
    class Liar(Client):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            _, metrics = super().train(model, config)
            model(x=node_data(self.node)[0])  # a keyword argument counts, too
            return 1, metrics

    strategy, _ = run(client_app(Liar), FedAvg(), policy="dense")

    row = next(r for r in strategy.ledger.rows if r["phase"] == "train")
    assert row["examples"] == 3 * len(node_data(row["node"] - 100)[0])


def test_metrics_must_be_numbers() -> None:
    class Wordy(Client):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            return 1, {"note": "fine"}

    with pytest.raises(AutoFlipError, match="metric 'note' must be one number"):
        run(client_app(Wordy), FedAvg())


def test_unwritten_methods_say_so() -> None:
    class Half(AutoFlipClient):
        pass

    with pytest.raises(AutoFlipError, match=r"write train\(self, model, config\)"):
        run(client_app(lambda context: Half(TinyNet, context)), FedAvg())


def test_another_model_on_the_node_is_named() -> None:
    class Other(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(96, 9)

    class Wrong(Client):
        def __init__(self, context: Context) -> None:
            super().__init__(context)
            self.model_fn = Other

    with pytest.raises(AutoFlipError, match=r"not the server's: fc1.weight: expected"):
        run(client_app(Wrong), FedAvg())


def test_one_node_of_another_version_is_refused_and_the_round_goes_on() -> None:
    def old(message: Message, context: Context, call_next: Any) -> Message:
        if context.node_config["partition-id"] == 2:
            config_of(message)["autoflip-package"] = "0.0.9"
        return call_next(message, context)

    strategy, _ = run(client_app(Client, mods=[old]), FedAvg(fraction_evaluate=0.0))

    rows = [row for row in strategy.ledger.rows if row["phase"] == "train"]
    assert {row["node"] for row in rows if row["status"] == "ok"} == {100, 101}
    (reason,) = {row["reason"] for row in rows if row["node"] == 102}
    assert reason == (
        f"WireError: this node runs flwr-autoflip {__version__}, the server 0.0.9; "
        "install one on both sides."
    )


def test_one_node_with_another_model_is_refused_in_one_line() -> None:
    class Other(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(96, 9)

    class Wrong(Client):
        def __init__(self, context: Context) -> None:
            super().__init__(context)
            if self.node == 2:
                self.model_fn = Other

    strategy, _ = run(client_app(Wrong), FedAvg(fraction_evaluate=0.0))

    rows = [row for row in strategy.ledger.rows if row["phase"] == "train"]
    assert {row["node"] for row in rows if row["status"] == "ok"} == {100, 101}
    (reason,) = {row["reason"] for row in rows if row["node"] == 102}
    assert reason == (
        "WireError: this node's model is not the server's: fc1.weight: expected "
        "float32 (8, 96), got float32 (9, 96); fc1.bias: expected float32 (8,), got "
        "float32 (9,). Use the same model class and arguments on both sides."
    )


def context() -> Context:
    return Context(1, 1, {"partition-id": 0}, RecordDict(), {})


def request_for(**changes: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    layout = trace(TinyNet(), EXAMPLE)
    plan = dense_plan(layout)
    config = {
        "autoflip-version": VERSION,
        "autoflip-package": __version__,
        "autoflip-phase": "train",
        "autoflip-layout": encode_layout(layout),
        "autoflip-plan": encode_plan(plan),
        "autoflip-plan-digest": plan_digest(encode_plan(plan), plan.layout),
        "autoflip-dtype": "float32",
        "lr": 0.1,
    }
    values = [np.zeros(plan.num_values, np.float32)]
    config |= {key.replace("_", "-"): v for key, v in changes.items()}
    return values, config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoflip_version": 2}, "expected wire version 1"),
        (
            {"autoflip_package": "0.0.9"},
            "flwr-autoflip .*, the server 0.0.9;",
        ),
        ({"autoflip_phase": "dance"}, "unknown phase 'dance'"),
        ({"autoflip_plan_digest": b"x"}, "does not hold the plan"),
        ({"autoflip_plan": b""}, "does not hold the plan"),
        ({"autoflip_layout": b"junk"}, "layout's bytes cannot be read"),
        ({"autoflip_dtype": "int4"}, "unknown dtype 'int4'"),
        ({"autoflip_dtype": "int8"}, "expected .* bytes of 8-bit values"),
        ({"autoflip_compress": True}, "expected packed bytes"),
        ({"autoflip_plan_change": b"junk"}, "unknown kind 6a"),
    ],
)
def test_a_bad_request_is_refused(changes: dict[str, Any], message: str) -> None:
    values, config = request_for(**changes)

    with pytest.raises(WireError, match=message):
        Client(context()).fit(values, config)


def test_bad_values_are_refused() -> None:
    values, config = request_for()
    client = Client(context())
    with pytest.raises(WireError, match="values"):
        client.fit([values[0][:-1]], config)
    with pytest.raises(WireError, match="NaN"):
        client.fit([values[0] * np.nan], config)
    with pytest.raises(WireError, match="expected one flat array, 2 came"):
        client.fit(values * 2, config)


def test_state_keeps_the_plan_for_the_next_round() -> None:
    values, config = request_for()
    client = Client(context())
    client.fit(values, config)
    del config["autoflip-plan"], config["autoflip-layout"]

    trained, examples, metrics = client.fit(values, config)

    assert trained[0].shape == values[0].shape
    assert examples == 12
    assert metrics["autoflip-plan-digest"] == config["autoflip-plan-digest"]


@pytest.mark.parametrize("value_dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("app", [client_app(Client), plain_app([autoflip_mod])])
def test_statistics_and_counters_of_any_size_arrive(
    app: ClientApp, value_dtype: str
) -> None:
    """Beyond 65,504, float16's largest number, and exactly."""
    arrays = {name: a.numpy() for name, a in initial().items()}
    arrays["norm.running_var"] = np.full(6, 1e6, np.float32)
    arrays["norm.num_batches_tracked"] = np.int64(1_000_001)
    inner = FedAvg(fraction_evaluate=0.0, min_available_nodes=3)
    strategy = AutoFlip(
        inner, TinyNet(), EXAMPLE, policy="dense", value_dtype=value_dtype
    )

    result = strategy.start(LocalGrid(app, 3), to_arrayrecord(arrays), num_rounds=1)

    # Two batches a node, each a tenth of the new variance.
    after = {name: a.numpy() for name, a in result.arrays.items()}
    assert after["norm.num_batches_tracked"] == 1_000_003
    assert (after["norm.running_var"] > 8e5).all()
