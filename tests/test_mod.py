"""An app that exists already takes part by one word on each side."""

import numpy as np
import pytest
import torch
from federation import EXAMPLE, TinyNet, initial, node_data, plain_app, sgd
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import message_size_mod
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid

from flwr_autoflip import AutoFlip, autoflip_mod
from flwr_autoflip.core.shrink import arrays_of, load_arrays_inplace
from flwr_autoflip.policies import PruneFl


class PlainNumPyClient(NumPyClient):
    """An ordinary dense client."""

    def __init__(self, node: int) -> None:
        self.node, self.model = node, TinyNet()

    def _load(self, parameters: list[np.ndarray]) -> None:
        load_arrays_inplace(
            self.model, dict(zip(self.model.state_dict(), parameters, strict=True))
        )

    def fit(self, parameters, config):  # type: ignore[no-untyped-def]
        self._load(parameters)
        loss = sgd(self.model.train(), self.node)
        arrays = list(arrays_of(self.model).values())
        return arrays, len(node_data(self.node)[0]), {"loss": loss}

    def evaluate(self, parameters, config):  # type: ignore[no-untyped-def]
        self._load(parameters)
        images, labels = node_data(self.node)
        loss = torch.nn.functional.cross_entropy(self.model.eval()(images), labels)
        return float(loss.detach()), len(labels), {}


def numpy_app() -> ClientApp:
    def client_fn(context: Context):  # type: ignore[no-untyped-def]
        return PlainNumPyClient(int(context.node_config["partition-id"])).to_client()

    return ClientApp(client_fn=client_fn, mods=[autoflip_mod])


@pytest.mark.parametrize("api", ["message", "numpy"])
def test_an_unchanged_app_takes_part(api: str) -> None:
    app = plain_app([autoflip_mod]) if api == "message" else numpy_app()
    strategy = AutoFlip(
        FedAvg(), TinyNet(), EXAMPLE, threshold="auto:0.5", client_api=api
    )

    result = strategy.start(LocalGrid(app, 3), initial(), num_rounds=2)

    rows = [r for r in strategy.ledger.rows if r["phase"] != "server"]
    assert {r["status"] for r in rows} == {"ok"}
    train = [r for r in rows if r["phase"] == "train"]
    plan = strategy.deployable_plan()
    assert plan.num_parameters < strategy.layout.num_parameters
    assert max(r["bytes_up"] for r in train) < 4 * plan.num_values + 2000
    # It trained its dense model, and the ledger says so.
    assert {r["parameters"] for r in train} == {strategy.layout.num_parameters}
    assert result.evaluate_metrics_clientapp[2]["loss"] > 0


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


def test_other_mods_keep_working_around_ours() -> None:
    strategy = AutoFlip(
        FedAvg(fraction_evaluate=0.0), TinyNet(), EXAMPLE, threshold="auto:0.5"
    )
    app = plain_app([message_size_mod, autoflip_mod, message_size_mod])

    strategy.start(LocalGrid(app, 3), initial(), num_rounds=1)

    assert {r["status"] for r in strategy.ledger.rows} == {"ok"}


def test_messages_of_others_pass_through() -> None:
    app = plain_app([autoflip_mod])

    result = FedAvg().start(LocalGrid(app, 3), initial(), num_rounds=1)

    assert len(result.arrays) == len(initial())


def test_a_mod_cannot_see_gradients_and_says_so() -> None:
    strategy = AutoFlip(
        FedAvg(fraction_evaluate=0.0), TinyNet(), EXAMPLE, policy=PruneFl(interval=1)
    )

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

    reasons = {r["node"]: r["reason"] for r in strategy.ledger.rows}
    expected = "RuntimeError: Error(s) in loading state_dict: size mismatch"
    assert reasons == {100: "", 101: expected, 102: ""}
