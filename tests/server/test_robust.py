"""Explorers that misbehave are refused with node and reason, or bounded."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from federation import EXAMPLE, Client, TinyNet, guided, initial, node_data
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr_autoflip.methods.units import unit_plan
from grid import LocalGrid
from torch import nn

from flwr_autoflip import AutoFlip, AutoFlipError, autoflip_mod, client_app
from flwr_autoflip.methods.guidance import unit_scores
from flwr_autoflip.methods.threshold import Mass

NODES, BAD = 6, 2


class Liar(Client):
    """Multiplies what it learned, on node ``BAD``."""

    factor = 1.0

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        start = [p.detach().clone() for p in model.parameters()]
        answer = super().train(model, config)
        if self.node == BAD and config["server-round"] == 0:
            with torch.no_grad():
                for parameter, before in zip(model.parameters(), start, strict=True):
                    parameter += (self.factor - 1) * (parameter - before)
        return answer


def liar(factor: float) -> ClientApp:
    made = type("Liar", (Liar,), {"factor": factor})
    return client_app(made)


def run(app: ClientApp, fault: Any = None, **options: Any) -> AutoFlip:
    options = guided(**{"threshold": "mass:0.5", "warm_start": False, **options})
    inner = FedAvg(fraction_evaluate=0.0)
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)
    strategy.start(LocalGrid(app, NODES, fault), initial(), num_rounds=1)
    return strategy


def refused(strategy: AutoFlip) -> dict[int, str]:
    rows = [row for row in strategy.ledger.rows if row["phase"] == "explore"]
    return {r["node"]: r["reason"] for r in rows if r["status"] == "refused"}


# --- A client's scale ---


@pytest.mark.parametrize("factor", [9.0, 0.01])
def test_a_louder_explorer_decides_no_more_than_others(factor: float) -> None:
    honest, loud = run(liar(1.0)), run(liar(factor))

    assert refused(loud) == {}
    np.testing.assert_array_equal(
        honest.deployable_plan().alive, loud.deployable_plan().alive
    )


def test_raw_reports_let_one_explorer_decide() -> None:
    raw = {"client_scale": "raw", "policy": "autoflip"}
    honest, loud, alone = run(liar(1.0), **raw), run(liar(1e4), **raw), run(liar(1.0))
    report = alone.reports[100 + BAD]
    decided = alone.policy(0, alone.layout, {}, [report, report])

    assert refused(loud) == {}
    assert (honest.deployable_plan().alive != loud.deployable_plan().alive).any()
    np.testing.assert_array_equal(loud.deployable_plan().alive, decided.alive)


@pytest.mark.parametrize("payload", ["update", "deviation", "units", "weights"])
def test_a_report_far_outside_is_refused_with_node_and_reason(
    payload: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "flwr"):
        strategy = run(liar(100.0), exploration_payload=payload)

    (node,) = refused(strategy)
    assert node == 100 + BAD
    assert "the round's median is" in refused(strategy)[node]
    assert (
        f"refused reply of node {node}: report: its parameters moved by" in caplog.text
    )
    assert node not in strategy.reports
    rows = [row for row in strategy.ledger.rows if row["phase"] == "train"]
    assert {row["status"] for row in rows} == {"ok"}  # it may train: that is checked


def test_a_warm_start_holds_no_update_that_was_refused() -> None:
    averaged: list[int] = []

    class Watched(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            if server_round == 0:
                averaged.extend(r.metadata.src_node_id for r in replies)
            return super().aggregate_train(server_round, replies)

    strategy = AutoFlip(Watched(), TinyNet(), EXAMPLE, **guided())
    strategy.start(LocalGrid(liar(100.0), NODES), initial(), num_rounds=0)

    assert sorted(averaged) == [100, 101, 103, 104, 105]


def test_if_most_are_far_outside_nobody_is() -> None:
    class Most(Liar):
        factor = 100.0

        def __init__(self, context: Context) -> None:
            super().__init__(context)
            self.node = BAD if self.node % 3 else self.node

    assert refused(run(client_app(Most))) == {}


# --- Honest clients that are unlike the others ---


def test_few_data_and_label_skew_are_not_refused() -> None:
    class Skewed(Client):
        """One class a node; 1 example and 1 step here, 400 and 100 steps there."""

        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            images, _ = node_data(self.node, count=[1, 3, 10, 40, 100, 400][self.node])
            labels = torch.full((len(images),), self.node % 3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            for part in images.split(4):
                optimizer.zero_grad()
                F.cross_entropy(model(part), labels[: len(part)]).backward()
                optimizer.step()
            return len(images), {}

    strategy = run(client_app(Skewed))

    assert refused(strategy) == {}
    norms = [
        np.sqrt(sum(v.sum() for v in r.values())) for r in strategy.reports.values()
    ]
    assert max(norms) > 10 * min(norms)


@pytest.mark.parametrize("payload", ["update", "weights"])
@pytest.mark.parametrize("value", [-1.0, 1e6])
def test_a_warm_start_takes_no_variance_that_cannot_be(
    payload: str, value: float
) -> None:
    class Wrong(Liar):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            count, metrics = super().train(model, config)
            if self.node == BAD:
                model.norm.running_var.fill_(value)
            return count, metrics

    options = guided(exploration_payload=payload, threshold="mass:0.5")
    strategy = AutoFlip(FedAvg(fraction_evaluate=0.0), TinyNet(), EXAMPLE, **options)
    grid = LocalGrid(client_app(Wrong), NODES)
    result = strategy.start(grid, initial(), num_rounds=0)

    assert refused(strategy) == {}
    variance = result.arrays["norm.running_var"].numpy()
    assert (variance > 0).all()
    assert (variance < 10).all()


# --- Reports that say nothing, or nonsense ---


def changed(change: Any) -> Any:
    """Change what node ``BAD`` reports, and seal it again."""
    import zlib

    def fault(node: int, reply: Message) -> Message:
        config = next(iter(reply.content.config_records.values()), {})
        if node == 100 + BAD and "autoflip-scale" in config:
            (record,) = reply.content.array_records.values()
            values = change(record["values"].numpy().copy())
            key = next(iter(reply.content.array_records))
            reply.content[key] = ArrayRecord({"values": Array(values)})
            config["autoflip-checksum"] = zlib.crc32(values.tobytes())
        return reply

    return fault


def fill(value: float, first: Any = slice(None)) -> Any:
    def change(values: np.ndarray) -> np.ndarray:
        values[first] = value
        return values

    return change


@pytest.mark.parametrize("payload", ["update", "deviation", "units"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fill(np.nan, 3), "NaN or infinite"),
        (fill(np.inf, 3), "NaN or infinite"),
        (fill(0.0), "nothing moved"),
        (fill(0.5), "everything moved alike"),
    ],
)
@pytest.mark.parametrize("preset", ["guided", "paper"])
def test_reports_that_say_nothing_are_refused_and_the_round_goes_on(
    payload: Any, change: Any, reason: str, preset: str
) -> None:
    options: dict[str, Any] = {"exploration_payload": payload, "preset": preset}
    if preset == "paper":
        options |= {"units": "score", "threshold": 0.4, "exploration_epochs": 1}
        options |= {"guidance_from": "explorers"}

    strategy = run(client_app(Client), changed(change), **options)

    assert list(refused(strategy)) == [100 + BAD]
    assert reason in refused(strategy)[100 + BAD]


@pytest.mark.parametrize("payload", ["deviation", "units"])
def test_sizes_below_0_are_refused(payload: Any) -> None:
    fault = changed(lambda values: -values)

    strategy = run(client_app(Client), fault, exploration_payload=payload)

    assert "sizes must be at least 0" in refused(strategy)[100 + BAD]


def test_signs_that_alternate_are_no_difference() -> None:
    def change(values: np.ndarray) -> np.ndarray:
        values[:] = np.where(np.arange(values.size) % 2, 0.5, -0.5)
        return values

    strategy = run(client_app(Client), changed(change))

    assert "everything moved alike" in refused(strategy)[100 + BAD]


def test_nobody_moved_is_one_clear_line() -> None:
    class Idle(Client):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            return 12, {}

    with pytest.raises(AutoFlipError, match="report: nothing moved; does train"):
        run(client_app(Idle))


# --- Combinations ---


@pytest.mark.parametrize(
    ("combination", "combine"),
    [
        ("mean", np.mean),
        ("median", np.median),
        ("trimmed-mean:0.2", lambda values, axis: np.sort(values, axis)[1:-1].mean(0)),
    ],
)
def test_plans_are_those_of_the_plain_formula(combination: str, combine: Any) -> None:
    strategy = run(client_app(Client), combination=combination)
    reports = list(strategy.reports.values())

    guidance = {}
    for name in reports[0]:
        values = [r[name].astype(float) / r[name].mean() for r in reports]
        mean = combine(np.stack(values), axis=0)
        guidance[name] = (mean - mean.min()) / (np.ptp(mean) or 1)
    scores = unit_scores(strategy.layout, guidance)

    plan = unit_plan(strategy.layout, scores, Mass(0.5))
    np.testing.assert_array_equal(strategy.deployable_plan().alive, plan.alive)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client_scale": "layer"}, "client_scale must be one of"),
        ({"combination": "mode"}, "combination must be 'mean', 'median'"),
        ({"combination": "trimmed-mean:0.7"}, "a share below 0.5"),
    ],
)
def test_wrong_options_are_errors(options: Any, message: str) -> None:
    with pytest.raises(AutoFlipError, match=message):
        run(client_app(Client), **options)


def test_a_mods_report_is_checked_likewise() -> None:
    from federation import plain_app

    strategy = run(plain_app([autoflip_mod]), changed(fill(0.0)))

    assert list(refused(strategy)) == [100 + BAD]
