"""The node's side, through our message API and Flower's plain ClientApp."""

from typing import Any

import numpy as np
import pytest
import torch
from asked import DENSE, LAYOUT, MASKED, SMALL, WEIGHTS, Asked, node, template
from federation import Client, TinyNet, config_of, node_data, plain_app, sgd
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from flwr_autoflip import (
    AutoFlipClient,
    __version__,
    autoflip_mod,
    client_app,
    wire,
)
from flwr_autoflip.client.client import sum_gradients
from flwr_autoflip.errors import WireError
from flwr_autoflip.graph.plan import Plan
from flwr_autoflip.graph.shrink import arrays_of, hold_mask, shrink, shrink_with

APPS: dict[str, Any] = {
    "message": client_app(Client),
    "numpy": ClientApp(client_fn=lambda context: Client(context).to_client()),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(
    "what",
    [
        {},
        {"plan": MASKED, "regrow": True},
        {"payload": "gradients", "plan": MASKED},
        {"phase": "explore", "plan": DENSE, "payload": "deviations"},
        {"phase": "explore", "plan": DENSE, "payload": "units"},
        {"phase": "evaluate"},
        {"phase": "budget"},
    ],
)
def test_both_of_flowers_apis_give_the_same(dtype: str, what: Any) -> None:
    servers = [Asked(app) for app in APPS.values()]

    # The second time what rounding left of the first is in.
    for _ in range(2):
        one, other = (server.ask(dtype=dtype, **what) for server in servers)
        assert len(one) == len(other) == 3
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine.reply.values, theirs.reply.values)
            np.testing.assert_array_equal(mine.reply.sizes, theirs.reply.sizes)
            assert mine.reply.metrics == theirs.reply.metrics
            assert mine.reply.num_examples == theirs.reply.num_examples
    ignored = {"seconds", "bytes_up"}
    first, second = (
        [{k: v for k, v in row.items() if k not in ignored} for row in server.rows]
        for server in servers
    )
    assert first == second


def test_the_small_model_is_trained_as_it_is() -> None:
    (answer, *_) = Asked(APPS["message"]).ask(plan=SMALL)

    model = shrink_with(TinyNet(), SMALL, WEIGHTS)
    sgd(model.train(), 0)
    flat = [array.ravel() for array in arrays_of(model).values()]
    np.testing.assert_array_equal(answer.reply.values, np.concatenate(flat))


def test_the_model_is_small_and_config_is_the_apps_own() -> None:
    seen: list[tuple[int, bool, dict[str, Any]]] = []

    class Spy(Client):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            size = sum(p.numel() for p in model.parameters())
            seen.append((size, model.training, config))
            return super().train(model, config)

    Asked(client_app(Spy), 1).ask(content=template(lr=0.5, tags=["a"]))

    assert seen == [(SMALL.num_parameters, True, {"lr": 0.5, "tags": ["a"]})]


def test_examples_are_counted_not_believed() -> None:
    class Liar(Client):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            _, metrics = super().train(model, config)
            model(x=node_data(self.node)[0])  # a keyword argument counts, too
            return 1, metrics

    asked = Asked(client_app(Liar), 1)
    asked.ask()

    assert asked.rows[0]["examples"] == 3 * len(node_data(0)[0])


def fails(app: ClientApp, message: str, **options: Any) -> None:
    asked = Asked(app, 1)
    assert asked.ask(**options) == []
    assert message in asked.reasons[0]
    assert asked.exchange.lost == {100}
    assert not asked.grid.contexts[100].state  # no trace


def test_what_an_app_did_wrong_is_said() -> None:
    class Wordy(Client):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            return super().train(model, config)[0], {"note": "fine"}

    unwritten = client_app(lambda context: AutoFlipClient(TinyNet, context))
    fails(client_app(Wordy), "metric 'note' must be one number")
    fails(unwritten, "write train(self, model, config)")
    fails(unwritten, "write test(self, model, config)", phase="evaluate")


def test_a_node_of_another_version_is_refused_in_one_line() -> None:
    def old(message: Message, context: Context, call_next: Any) -> Message:
        config_of(message)["autoflip-package"] = "0.0.9"
        return call_next(message, context)

    fails(
        client_app(Client, mods=[old]),
        f"WireError: this node runs flwr-autoflip {__version__}, the server 0.0.9; "
        "install one on both sides.",
    )


def test_a_node_with_another_model_is_refused_in_one_line() -> None:
    class Other(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(96, 9)

    class Wrong(Client):
        def __init__(self, context: Context) -> None:
            super().__init__(context)
            self.model_fn = Other

    fails(
        client_app(Wrong),
        "WireError: this node's model is not the server's: fc1.weight: expected "
        "float32 (8, 96), got float32 (9, 96); fc1.bias: expected float32 (8,), got "
        "float32 (9,). Use the same model class and arguments on both sides.",
        dtype="int8",
    )


def test_arrays_of_other_servers_are_refused() -> None:
    with pytest.raises(WireError, match="wrap the server's strategy in AutoFlip"):
        Client(node()).fit([np.zeros(2), np.zeros(3)], {})
    content = RecordDict({"config": ConfigRecord({"lr": 1.0})})
    with pytest.raises(WireError, match="expected one ArrayRecord, 0 came"):
        Client(node()).answer_train(content)


@pytest.mark.parametrize("value_dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("app", [client_app(Client), plain_app([autoflip_mod])])
def test_statistics_and_counters_of_any_size_arrive(
    app: ClientApp, value_dtype: str
) -> None:
    """Beyond 65,504, float16's largest number, and exactly."""
    weights = WEIGHTS | {
        "norm.running_var": np.full(6, 1e6, np.float32),
        "norm.num_batches_tracked": np.int64(1_000_001),
    }

    answers = Asked(app).ask(plan=DENSE, weights=weights, dtype=value_dtype)

    assert len(answers) == 3
    for answer in answers:
        flat, place = answer.reply.values, 0
        after = {}
        for spec in LAYOUT.tensors:
            after[spec.name] = flat[place : (place := place + spec.size)]
        # Two batches a node, each a tenth of the new variance.
        assert after["norm.num_batches_tracked"] == 1_000_003
        assert (after["norm.running_var"] > 8e5).all()


# --- Budgets ---


@pytest.mark.parametrize("app", APPS.values(), ids=APPS)
def test_a_node_says_its_budget_and_takes_no_more(app: Any) -> None:
    asked = Asked(app, 1, **{"autoflip-budget": "macs:0.5"})

    (answer,) = asked.ask("budget")
    assert answer.reply.metadata[wire.keys.BUDGET] == "macs:0.5"
    assert asked.rows[0]["parameters"] == asked.rows[0]["examples"] == 0
    assert len(asked.ask(budget="macs:0.5")) == 1
    assert asked.ask() == []
    assert "this node's budget is 'macs:0.5', but the server sent" in asked.reasons[0]


# --- Gradients ---


def test_gradients_of_all_steps_add_up_also_where_a_mask_zeroes_them() -> None:
    mask = np.ones((3, 8), bool)
    mask[0, 1] = False
    plan = Plan(LAYOUT, SMALL.keep, {"fc2.weight": mask})
    small: Any = shrink(TinyNet(), plan)
    small.fc1.weight.requires_grad = False  # a frozen one is left alone
    optimizer = torch.optim.SGD(small.parameters(), lr=0.0)

    with hold_mask(small, plan), sum_gradients(small) as sums:
        for factor in (2.0, 3.0):
            optimizer.zero_grad()
            (factor * small.fc2.weight.sum()).backward()
            optimizer.step()
            masked = small.fc2.weight.grad
    small.fc2.weight.sum().backward()  # hooks left with the context

    np.testing.assert_array_equal(sums["fc2.weight"], np.full((3, 6), 5.0))
    assert set(sums) == {"fc2.weight"}  # nothing reached the others
    np.testing.assert_array_equal(masked[0, :2], [1, 4])  # 0 and 3, plus the last 1
