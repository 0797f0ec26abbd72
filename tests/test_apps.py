"""What apps that exist do to AutoFLIP: it works, or one line says the way out."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import flwr.client.mod as older_mods
import numpy as np
import pytest
import torch
from federation import EXAMPLE, RANDOM, Client, TinyNet, initial, plain_app, sgd
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.server.strategy import FedAvg as OlderFedAvg
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg
from grid import LocalGrid
from torch import nn

from flwr_autoflip import (
    AutoFlip,
    AutoFlipError,
    AutoFlipWarning,
    autoflip_mod,
    client_app,
)
from flwr_autoflip.graph.layout import Layout
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods import L1, Method, Round, State

NODES = 2


def build(inner: Any = None, **options: Any) -> AutoFlip:
    options = {"value_dtype": "float32", **options}
    inner = inner or FedAvg(fraction_evaluate=0.0)
    return AutoFlip(inner, TinyNet(), EXAMPLE, **options)


def reasons(app: ClientApp, strategy: AutoFlip, rounds: int = 1) -> set[str]:
    """Run and give why replies were lost; a run in which none counts may end so."""
    try:
        strategy.start(LocalGrid(app, NODES), initial(), num_rounds=rounds)
    except AutoFlipError:
        assert not [r for r in node_rows(strategy.ledger.rows) if r["status"] == "ok"]
    return {row["reason"] for row in node_rows(strategy.ledger.rows)}


# --- What an evaluation sends ---


def test_arrays_in_an_evaluations_reply_stay_at_the_node() -> None:
    def echo(message: Any, context: Any, call_next: Any) -> Message:
        reply = call_next(message, context)
        reply.content["arrays"] = ArrayRecord(TinyNet().state_dict())
        return reply

    sent = {}
    for name, mods in (("plain", [autoflip_mod]), ("echo", [autoflip_mod, echo])):
        app = ClientApp(mods=mods)
        inner = plain_app()
        app.train()(inner)
        app.evaluate()(inner)
        strategy = build(FedAvg())
        strategy.start(LocalGrid(app, NODES), initial(), num_rounds=1)
        rows = node_rows(strategy.ledger.rows)
        assert {row["status"] for row in rows} == {"ok"}
        sent[name] = [r["bytes_up"] for r in rows if r["phase"] == "evaluate"]

    assert max(sent["echo"]) <= max(sent["plain"]) + 10


# --- Mods that cannot work ---


@pytest.mark.parametrize("kind", ["before", "behind", "alone"])
def test_secure_aggregation_is_refused_by_name(kind: str) -> None:
    mods = {
        "before": [older_mods.secaggplus_mod, autoflip_mod],
        "behind": [autoflip_mod, older_mods.secaggplus_mod],
        "alone": [older_mods.secagg_mod],
    }

    (reason,) = reasons(plain_app(mods[kind]), build())

    assert "SecAgg+ adds up dense models" in reason
    assert "leave secaggplus_mod out" in reason


def test_secure_aggregation_around_our_client_is_refused_at_once() -> None:
    with pytest.raises(AutoFlipError, match=r"SecAgg\+ .* leave secaggplus_mod out"):
        client_app(Client, mods=[older_mods.secaggplus_mod])


@pytest.mark.parametrize("order", ["behind", "before"])
def test_mods_of_the_older_api_are_called_so(order: str) -> None:
    older = older_mods.fixedclipping_mod
    mods = [autoflip_mod, older] if order == "behind" else [older, autoflip_mod]
    private = DifferentialPrivacyClientSideFixedClipping(
        FedAvg(fraction_evaluate=0.0), 0.0, 1.0, NODES
    )

    (reason,) = reasons(plain_app(mods), build(private))

    assert "import mods from flwr.clientapp.mod" in reason


class Usual(NumPyClient):
    """Loads parameters as Flower's examples do."""

    def fit(self, parameters, config):  # type: ignore[no-untyped-def]
        model = TinyNet()
        state = zip(model.state_dict(), map(torch.tensor, parameters), strict=False)
        model.load_state_dict(dict(state), strict=True)


def test_a_forgotten_mod_is_named() -> None:
    (reason,) = reasons(plain_app(), build())
    assert "ClientApp(mods=[autoflip_mod])" in reason

    app = ClientApp(client_fn=lambda context: Usual().to_client())
    (reason,) = reasons(app, build())
    assert "mods=[autoflip_mod]" in reason


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("'secaggplus_configs'", "leave secaggplus_mod out"),
        ("'fitres.parameters'", "import mods from flwr.clientapp.mod"),
        ('Missing key(s) in state_dict: "fc1.weight"', "mods=[autoflip_mod]"),
    ],
)
def test_flowers_engine_says_it_in_other_words(said: str, hint: str) -> None:
    """As ``flwr run`` reports what a ClientApp raised: without its name."""
    name = "flwr.clientapp.client_app.ClientAppException"
    told = f"\nException ClientAppException occurred. Message: {said}"
    error = Error(2, f"<class '{name}'>:<'{told}'>")

    def fail(message: Message, context: Any, call_next: Any) -> Message:
        return Message(error, reply_to=message)

    (reason,) = reasons(plain_app([fail]), build())

    assert hint in reason
    assert said in reason


# --- Strategies that cannot work ---


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (OlderFedAvg(), r"FedAvg is of Flower's legacy API.*server"),
        (FedAvg, r"expected a strategy of flwr\.serverapp"),
    ],
)
def test_what_is_no_strategy_is_refused(inner: Any, message: str) -> None:
    with pytest.raises(AutoFlipError, match=message):
        build(inner)


# --- Training that goes nowhere ---


class OnACopy(Client):
    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        return super().train(copy.deepcopy(model), config)


def message_app(
    model_fn: Callable[[], nn.Module], work: Callable[[Any, Message, Context], Any]
) -> ClientApp:
    """An app behind the mod; ``work`` gives what it returns of the state_dict."""
    app = ClientApp(mods=[autoflip_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        returned = work(model_fn(), message, context)
        reply = message.content
        reply["arrays"] = ArrayRecord(returned)
        del reply["config"]
        reply["metrics"] = MetricRecord({"num-examples": 3})
        return Message(reply, reply_to=message)

    return app


def arrived(message: Message) -> dict[str, torch.Tensor]:
    return message.content["arrays"].to_torch_state_dict()  # type: ignore[union-attr]


def on_a_copy(model: nn.Module, message: Message, context: Context) -> Any:
    model.load_state_dict(arrived(message))
    sgd(copy.deepcopy(model), 0)
    return model.state_dict()


@pytest.mark.filterwarnings("always::flwr_autoflip.AutoFlipWarning")
@pytest.mark.parametrize("app", [client_app(OnACopy), message_app(TinyNet, on_a_copy)])
def test_a_copy_that_was_trained_in_its_place_is_noticed(app: ClientApp) -> None:
    with pytest.warns(AutoFlipWarning, match="no weight moved.*copy"):
        assert reasons(app, build()) == {""}


# --- Parts that nodes keep for themselves ---


def with_own_head(model: nn.Module, message: Message, context: Context) -> Any:
    """A node that keeps its last layer; only the rest is loaded."""
    own = {n: v for n, v in arrived(message).items() if not n.startswith("fc2")}
    if "head" in context.state:
        own |= context.state["head"].to_torch_state_dict()  # type: ignore[union-attr]
    model.load_state_dict(own, strict=False)
    sgd(model.train(), int(context.node_config["partition-id"]))
    state = model.state_dict()
    head = {n: v for n, v in state.items() if n.startswith("fc2")}
    context.state["head"] = ArrayRecord(head)  # type: ignore[arg-type]
    whole = context.run_config["whole"]
    return state if whole else {n: v for n, v in state.items() if n not in head}


@pytest.mark.parametrize("whole", [True, False])
def test_a_node_may_keep_its_head_if_it_returns_all(whole: bool) -> None:
    grid = LocalGrid(message_app(TinyNet, with_own_head), NODES)
    for context in grid.contexts.values():
        context.run_config["whole"] = whole
    strategy = build(method=RANDOM)

    try:
        strategy.start(grid, initial(), num_rounds=3)
    except AutoFlipError:
        assert not whole
    (reason,) = {row["reason"] for row in node_rows(strategy.ledger.rows)}
    if whole:
        assert reason == ""
    else:
        assert "return the whole state_dict, also layers that this node keeps" in reason


class OwnHead(Client):
    """Keeps the last layer as it left it, whatever comes."""

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        head: Any = model.fc2
        if "head" in self.context.state:
            own: Any = self.context.state["head"]
            head.load_state_dict(own.to_torch_state_dict())
        found = super().train(model, config)
        self.context.state["head"] = ArrayRecord(head.state_dict())
        return found


class Narrower(Method[State]):
    """One unit less in every group and round."""

    def _plan(self, layout: Layout, number: int) -> Plan:
        sizes = {group.name: group.size - number for group in layout.groups}
        return Plan(layout, {name: np.arange(n) for name, n in sizes.items()})

    def begin(self, layout: Layout, weights: Any) -> tuple[State, Any]:
        return State(self._plan(layout, 1)), weights

    def learn(self, state: State, done: Round) -> tuple[State, Any]:
        return State(self._plan(state.plan.layout, done.number + 1)), done.weights


def test_a_head_of_its_own_needs_a_layer_before_it_that_stays() -> None:
    lost = reasons(client_app(OwnHead), build(method=Narrower()), 2)
    strategy = build(method=Narrower(), ignored_layers=("fc1",))
    kept = reasons(client_app(OwnHead), strategy, 2)

    assert kept == {""}
    assert any("ignored_layers=(...) what stands before" in why for why in lost)


def test_sizes_are_torchs_own_words() -> None:
    """The hints go by what torch says, which a new version may say in other words."""
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict"):
        TinyNet().load_state_dict({})
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        nn.Linear(2, 3).load_state_dict(
            {"weight": torch.zeros(1), "bias": torch.ones(3)}
        )


# --- Units that answer though they are removed ---


class Sigmoids(nn.Module):
    """A hidden layer with sigmoids, another one with ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(self.first(x.flatten(1)))
        return self.last(torch.relu(self.second(x)))


def as_usual(model: nn.Module, message: Message, context: Context) -> Any:
    model.load_state_dict(arrived(message))
    sgd(model, int(context.node_config["partition-id"]))
    return model.state_dict()


SIGMOIDS = message_app(Sigmoids, as_usual)


class SigmoidClient(Client):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.model_fn = Sigmoids

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        return 3, {"loss": sgd(model, self.node)}


def sigmoid_run(app: ClientApp, **options: Any) -> tuple[Any, AutoFlip]:
    torch.manual_seed(0)
    model, result = Sigmoids(), None
    options = {"value_dtype": "float32", **options}
    strategy = AutoFlip(FedAvg(fraction_evaluate=0.0), model, EXAMPLE, **options)
    start = ArrayRecord(model.state_dict())
    with contextlib.suppress(AutoFlipError):
        result = strategy.start(LocalGrid(app, NODES), start, num_rounds=2)
    return result, strategy


def test_a_mod_that_would_train_another_network_refuses() -> None:
    _, strategy = sigmoid_run(SIGMOIDS)

    (reason,) = {row["reason"] for row in node_rows(strategy.ledger.rows)}
    assert "pruned units of first still answer" in reason
    assert "ignored_layers=(...), or use AutoFlipClient" in reason


def test_with_the_way_out_mod_and_client_train_the_same() -> None:
    ignored = {"ignored_layers": ("first",), "method": L1(threshold="2x")}
    found = [
        sigmoid_run(app, **ignored)[0].arrays
        for app in (SIGMOIDS, client_app(SigmoidClient))
    ]
    for name, array in found[0].items():
        np.testing.assert_allclose(array.numpy(), found[1][name].numpy(), atol=1e-6)


def test_the_class_needs_no_way_out() -> None:
    _, strategy = sigmoid_run(client_app(SigmoidClient))

    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
