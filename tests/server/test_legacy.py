"""Strategies of Flower's legacy API inside AutoFlip, and apps with a server_fn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, RANDOM, PlainNumPyClient, TinyNet, initial, make_model
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
WEIGHTS = list(arrays_of(make_model()).values())


def make_grid(kind: type[PlainNumPyClient] = PlainNumPyClient) -> LocalGrid:
    def client_fn(context: Context) -> Any:
        return kind(int(context.node_config["partition-id"])).to_client()

    return LocalGrid(ClientApp(client_fn, mods=[autoflip_mod]), NODES)


# --- Strategies ---


def run(strategy: Any, rounds: int = 3) -> tuple[dict[str, np.ndarray], AutoFlip]:
    options: dict[str, Any] = {"method": RANDOM, "value_dtype": "float32"}
    outer = AutoFlip(strategy, TinyNet(), EXAMPLE, **options)
    result = outer.start(make_grid(), initial(), num_rounds=rounds)
    return {name: a.numpy() for name, a in result.arrays.items()}, outer


def test_the_legacy_fedavg_trains_what_the_newer_one_does() -> None:
    legacy, strategy = run(Legacy(FedAvg()))
    newer, other = run(message.FedAvg())

    for name, array in newer.items():
        np.testing.assert_allclose(legacy[name], array, rtol=1e-5, atol=1e-7)
    rows, others = node_rows(strategy.ledger.rows), node_rows(other.ledger.rows)
    assert len(rows) == len(others) == NODES * 6
    assert {row["status"] for row in rows} == {"ok"}
    for key in ("bytes_up", "macs", "parameters"):
        assert sorted(r[key] for r in rows) == sorted(r[key] for r in others)


def test_a_legacy_optimizer_keeps_its_state() -> None:
    start = ndarrays_to_parameters(WEIGHTS)
    arrays, strategy = run(Legacy(FedAdam(initial_parameters=start, eta=0.01)))

    moved = arrays["fc2.weight"] - arrays_of(make_model())["fc2.weight"]
    assert 0 < np.abs(moved).max() < 0.2
    kept = strategy.deployable_plan.dense_mask("fc2.weight")
    assert (moved[kept] != 0).mean() > 0.5


def test_a_strategy_that_sends_models_of_its_own_is_refused() -> None:
    class Personal(FedAvg):
        def configure_fit(self, *args: Any) -> Any:
            mine = ndarrays_to_parameters([np.zeros(1)])
            pairs = super().configure_fit(*args)
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
        Legacy(Curious()).configure_train(1, ArrayRecord(), ConfigRecord(), make_grid())


# --- Apps ---


def serve(
    grid: LocalGrid, options: dict[str, Any] | None = None, **changes: Any
) -> None:
    """Run an app whose ``server_fn`` gives a strategy and a config, or ``changes``."""

    def server_fn(context: Context) -> ServerAppComponents:
        strategy = FedAvg(
            fraction_fit=0.5,
            initial_parameters=ndarrays_to_parameters(WEIGHTS),
            on_fit_config_fn=lambda server_round: {"round": server_round},
            evaluate_fn=lambda server_round, arrays, config: (
                float(len(arrays)),
                {"round": server_round, "note": "text is no metric"},
            ),
            evaluate_metrics_aggregation_fn=lambda found: {"nodes": len(found)},
        )
        parts: dict[str, Any] = {"config": ServerConfig(num_rounds=2)}
        return ServerAppComponents(**{"strategy": strategy, **parts, **changes})

    app = autoflip_server(server_fn, TinyNet, EXAMPLE, **(options or {}))
    app(grid, Context(1, 1, {}, RecordDict(), {}))


def test_a_server_fn_runs_as_it_is(tmp_path: Path) -> None:
    grid = make_grid()

    serve(grid, {"ledger_dir": tmp_path, "method": RANDOM})

    rows = read_ledger(tmp_path / "ledger.jsonl")
    train = [row for row in rows if row["phase"] == "train"]
    assert [row["round"] for row in train] == [1, 1, 2, 2]  # half of the nodes
    assert {row["status"] for row in train} == {"ok"}
    served = [row["metrics"] for row in rows if row["phase"] == "server"]
    assert served[-1] == {"loss": len(WEIGHTS), "round": 2}
    records = [m.content.config_records for _, m in grid.log]
    configs = [r["fitins.config"] for r in records if "fitins.config" in r]
    assert {config["round"] for config in configs} == {1, 2}


def test_without_initial_parameters_the_model_is_the_start(tmp_path: Path) -> None:
    strategy = FedAvg(fraction_evaluate=0.0)

    serve(make_grid(), {"ledger_dir": tmp_path}, strategy=strategy, config=None)

    rows = read_ledger(tmp_path / "ledger.jsonl")
    assert {row["round"] for row in rows if row["phase"] == "train"} == {1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"server": Server(client_manager=SimpleClientManager())},
            "gives a Server of its own",
        ),
        (
            {
                "strategy": FedAvg(
                    initial_parameters=ndarrays_to_parameters(WEIGHTS[:1])
                )
            },
            "1 arrays, the model's state_dict has",
        ),
    ],
)
def test_what_autoflip_would_replace_or_is_not_the_models_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(AutoFlipError, match=words):
        serve(make_grid(), **changes)


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
    tmp_path: Path,
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

    serve(make_grid(Talkative), {"ledger_dir": tmp_path}, strategy=strategy)

    rows = node_rows(read_ledger(tmp_path / "ledger.jsonl"))
    assert {row["status"] for row in rows} == {"ok"}
    assert len(seen["fit"]) == len(seen["evaluate"]) == 2
    for found in seen["fit"]:
        texts = sorted(metrics["my_metric"] for metrics in found)
        assert texts == [f'{{"b": {node}}}' for node in range(NODES)]
        assert all(m["raw"] == b"\0\1" and m["done"] is True for m in found)
        assert all(not any(k.startswith("autoflip") for k in m) for m in found)
    assert seen["evaluate"][0][0] == {"name": "a node", "accuracy": 0.5}
