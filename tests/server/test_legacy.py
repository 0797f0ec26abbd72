"""Strategies of Flower's legacy API inside AutoFlip, and apps with a server_fn."""

from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, PlainNumPyClient, TinyNet, guided, initial, make_model
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import FitIns, ndarrays_to_parameters
from flwr.server import Server, ServerAppComponents, ServerConfig
from flwr.server.client_manager import SimpleClientManager
from flwr.server.strategy import FedAdam, FedAvg
from flwr.serverapp import strategy as message
from grid import LocalGrid

from flwr_autoflip import AutoFlip, AutoFlipError, autoflip_mod, autoflip_server
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.ledger.ledger import node_rows, read_ledger
from flwr_autoflip.server.legacy import Legacy

NODES = 4


def client_fn(context: Context) -> Any:
    return PlainNumPyClient(int(context.node_config["partition-id"])).to_client()


def grid() -> LocalGrid:
    return LocalGrid(ClientApp(client_fn, mods=[autoflip_mod]), NODES)


def run(strategy: Any, rounds: int = 3) -> tuple[dict[str, np.ndarray], AutoFlip]:
    outer = AutoFlip(strategy, TinyNet(), EXAMPLE, client_api="numpy", **guided())
    result = outer.start(grid(), initial(), num_rounds=rounds)
    return {name: a.numpy() for name, a in result.arrays.items()}, outer


def test_the_older_fedavg_trains_what_the_newer_one_does() -> None:
    older, strategy = run(Legacy(FedAvg()))
    newer, other = run(message.FedAvg())

    for name, array in newer.items():
        np.testing.assert_allclose(older[name], array, rtol=1e-5, atol=1e-7)
    rows, others = node_rows(strategy.ledger.rows), node_rows(other.ledger.rows)
    assert len(rows) == len(others) == NODES * 7  # exploring, 3 times both phases
    assert {row["status"] for row in rows} == {"ok"}
    for key in ("bytes_up", "macs", "parameters"):
        assert sorted(r[key] for r in rows) == sorted(r[key] for r in others)


def test_an_older_optimizer_keeps_its_state() -> None:
    start = ndarrays_to_parameters(list(arrays_of(make_model()).values()))
    arrays, strategy = run(Legacy(FedAdam(initial_parameters=start, eta=0.01)))

    moved = arrays["fc2.weight"] - arrays_of(make_model())["fc2.weight"]
    assert 0 < np.abs(moved).max() < 0.2
    plan = strategy.deployable_plan()
    kept = plan.dense_mask("fc2.weight")
    assert (moved[kept] != 0).mean() > 0.5


def components(**changes: Any) -> Any:
    def server_fn(context: Context) -> ServerAppComponents:
        model = make_model()
        parts: dict[str, Any] = {
            "strategy": FedAvg(
                fraction_fit=0.5,
                initial_parameters=ndarrays_to_parameters(
                    list(arrays_of(model).values())
                ),
                on_fit_config_fn=lambda server_round: {"round": server_round},
                evaluate_fn=lambda server_round, arrays, config: (
                    float(len(arrays)),
                    {"round": server_round, "note": "text is no metric"},
                ),
                evaluate_metrics_aggregation_fn=lambda found: {"nodes": len(found)},
            ),
            "config": ServerConfig(num_rounds=2),
        }
        return ServerAppComponents(**(parts | changes))

    return server_fn


class Talkative(PlainNumPyClient):
    """Says more than numbers, as clients of the legacy API may."""

    def fit(self, parameters, config):  # type: ignore[no-untyped-def]
        arrays, count, metrics = super().fit(parameters, config)
        said = {"my_metric": f'{{"b": {self.node}}}', "raw": b"\0\1", "done": True}
        return arrays, count, {**metrics, **said}

    def evaluate(self, parameters, config):  # type: ignore[no-untyped-def]
        loss, count, _ = super().evaluate(parameters, config)
        return loss, count, {"name": "a node", "accuracy": 0.5}


def test_metrics_that_are_no_numbers_reach_the_apps_own_functions(
    tmp_path: Any,
) -> None:
    seen: dict[str, list[Any]] = {"fit": [], "evaluate": []}

    def note(kind: str) -> Any:
        def aggregate(found: Any) -> dict[str, Any]:
            seen[kind].append([metrics for _, metrics in found])
            return {"nodes": len(found), "said": "text"}

        return aggregate

    strategy = FedAvg(
        fit_metrics_aggregation_fn=note("fit"),
        evaluate_metrics_aggregation_fn=note("evaluate"),
    )
    app = autoflip_server(
        components(strategy=strategy), TinyNet, EXAMPLE, ledger_dir=tmp_path
    )
    nodes = ClientApp(
        lambda c: Talkative(int(c.node_config["partition-id"])).to_client(),
        mods=[autoflip_mod],
    )

    app(LocalGrid(nodes, NODES), context())

    rows = node_rows(read_ledger(tmp_path / "ledger.jsonl"))
    assert {row["status"] for row in rows} == {"ok"}
    assert len(seen["fit"]) == len(seen["evaluate"]) == 2
    for found in seen["fit"]:
        assert sorted(m["my_metric"] for m in found) == [
            f'{{"b": {node}}}' for node in range(NODES)
        ]
        assert all(m["raw"] == b"\0\1" and m["done"] is True for m in found)
        assert all(not any(k.startswith("autoflip") for k in m) for m in found)
    assert seen["evaluate"][0][0] == {"name": "a node", "accuracy": 0.5}


def context() -> Context:
    return Context(1, 1, {}, RecordDict(), {})


def test_a_server_fn_runs_as_it_is(tmp_path: Any) -> None:
    app = autoflip_server(components(), TinyNet, EXAMPLE, **guided(ledger_dir=tmp_path))
    nodes = grid()

    app(nodes, context())

    rows = read_ledger(tmp_path / "ledger.jsonl")
    train = [row for row in rows if row["phase"] == "train"]
    assert [row["round"] for row in train] == [1, 1, 2, 2]  # half of the nodes
    assert {row["status"] for row in train} == {"ok"}
    served = [row["metrics"] for row in rows if row["phase"] == "server"]
    tensors = len(arrays_of(TinyNet()))
    assert served[-1]["loss"] == tensors
    assert served[-1]["round"] == 2
    assert "note" not in served[-1]
    configs = [m.content.config_records["fitins.config"] for _, m in nodes.log
               if "fitins.config" in m.content.config_records]  # fmt: skip
    assert {config["round"] for config in configs} == {0, 1, 2}


def test_without_initial_parameters_the_model_is_the_start(tmp_path: Any) -> None:
    server_fn = components(strategy=FedAvg(fraction_evaluate=0.0), config=None)

    autoflip_server(server_fn, TinyNet, EXAMPLE, ledger_dir=tmp_path)(grid(), context())

    rows = read_ledger(tmp_path / "ledger.jsonl")
    assert {row["round"] for row in rows if row["phase"] == "train"} == {1}


def test_a_server_of_its_own_is_refused() -> None:
    own = Server(client_manager=SimpleClientManager())
    with pytest.raises(AutoFlipError, match="gives a Server of its own"):
        autoflip_server(components(server=own), TinyNet, EXAMPLE)(grid(), context())


def test_initial_parameters_of_another_model_are_refused() -> None:
    other = FedAvg(initial_parameters=ndarrays_to_parameters([np.zeros(3)]))
    with pytest.raises(AutoFlipError, match="1 arrays, the model's state_dict has"):
        autoflip_server(components(strategy=other), TinyNet, EXAMPLE)(grid(), context())


def test_a_strategy_that_sends_models_of_its_own_is_refused() -> None:
    class Personal(FedAvg):
        def configure_fit(self, *args: Any) -> Any:
            pairs = super().configure_fit(*args)
            mine = ndarrays_to_parameters([np.zeros(1)])
            return [(node, FitIns(mine, ins.config)) for node, ins in pairs]

    with pytest.raises(AutoFlipError, match="models of its own"):
        run(Legacy(Personal()))


def test_a_strategy_that_talks_to_nodes_itself_is_refused() -> None:
    class Curious(FedAvg):
        def configure_fit(
            self, server_round: int, parameters: Any, manager: Any
        ) -> Any:
            for node in manager.all().values():
                node.get_properties(None, None, None)

    with pytest.raises(AutoFlipError, match="talks to a node outside"):
        Legacy(Curious()).configure_train(1, ArrayRecord(), ConfigRecord(), grid())
