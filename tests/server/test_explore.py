"""Explorers that misbehave are refused with node and reason, or bounded."""

import logging
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from federation import EXAMPLE, Client, TinyNet, initial, node_data, plain_app
from flwr.app import Array, ArrayRecord, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid
from torch import nn

from flwr_autoflip import AutoFlip, AutoFlipError, autoflip_mod, client_app
from flwr_autoflip.methods import Guided, Paper

NODES, BAD = 6, 2
HALF = "cumulative:0.5"
BY_UNIT = Guided(threshold=HALF, report="units")
PAPER = Paper(threshold=0.4, epochs=1)


def times(factor: float, *bad: int) -> ClientApp:
    """Nodes of which some multiply what they learned in round 1."""

    class Loud(Client):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            start = [p.detach().clone() for p in model.parameters()]
            answer = super().train(model, config)
            if self.node in bad and config["server-round"] == 1:
                with torch.no_grad():
                    for p, before in zip(model.parameters(), start, strict=True):
                        p += (factor - 1) * (p - before)
            return answer

    return client_app(Loud)


def run(method: Any, app: ClientApp, fault: Any = None) -> AutoFlip:
    inner = FedAvg(fraction_evaluate=0.0)
    options: dict[str, Any] = {"method": method, "value_dtype": "float32"}
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)
    strategy.start(LocalGrid(app, NODES, fault), initial(), num_rounds=1)
    return strategy


def refused(strategy: AutoFlip, phase: str = "explore") -> dict[int, str]:
    rows = [row for row in strategy.ledger.rows if row["phase"] == phase]
    return {r["node"] - 100: r["reason"] for r in rows if r["status"] != "ok"}


# --- A node's scale ---


@pytest.mark.parametrize("method", [Guided(threshold=HALF), BY_UNIT], ids=str)
@pytest.mark.parametrize("factor", [9.0, 0.01])
def test_a_louder_explorer_decides_no_more_than_others(
    method: Any, factor: float
) -> None:
    honest, loud = (run(method, times(f, BAD)) for f in (1.0, factor))

    assert refused(loud) == refused(loud, "train") == {}
    np.testing.assert_array_equal(
        honest.deployable_plan.alive, loud.deployable_plan.alive
    )


def test_a_report_that_is_an_outlier_is_refused_with_node_and_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = times(100.0, BAD)
    with caplog.at_level(logging.WARNING, "flwr"):
        strategy = run(BY_UNIT, app)

    assert list(refused(strategy)) == [BAD]
    assert "the round's median is" in refused(strategy)[BAD]
    text = "refused reply of node 102: report: its parameters moved by"
    assert text in caplog.text
    assert list(refused(run(Guided(threshold=HALF), app), "train")) == [BAD]


def test_if_most_are_outliers_nobody_is() -> None:
    assert refused(run(BY_UNIT, times(100.0, 1, 2, 4, 5))) == {}


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

    strategy = run(BY_UNIT, client_app(Skewed))

    assert refused(strategy) == refused(strategy, "train") == {}


# --- Reports that say nothing, or nonsense ---

Change = Callable[[np.ndarray], np.ndarray]


def changed(change: Change) -> Any:
    """Change what node ``BAD`` reports, and seal it again."""

    def fault(node: int, reply: Message) -> Message:
        config = next(iter(reply.content.config_records.values()), {})
        if node == 100 + BAD and "autoflip-scale" in config:
            ((key, record),) = reply.content.array_records.items()
            ((name, array),) = record.items()
            values = change(array.numpy().copy())
            reply.content[key] = ArrayRecord({name: Array(values)})
            config["autoflip-checksum"] = zlib.crc32(values.tobytes())
        return reply

    return fault


def fill(value: float, first: Any = slice(None)) -> Change:
    def change(values: np.ndarray) -> np.ndarray:
        values[first] = value
        return values

    return change


@pytest.mark.filterwarnings("ignore:T_p")
@pytest.mark.parametrize("method", [BY_UNIT, PAPER], ids=str)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fill(np.nan, 3), "NaN or infinite"),
        (fill(0.0), "nothing moved"),
        (fill(0.5), "everything moved alike"),
        (np.negative, "sizes must be at least 0"),
    ],
)
def test_reports_that_say_nothing_are_refused_and_the_round_goes_on(
    method: Any, change: Change, reason: str
) -> None:
    strategy = run(method, client_app(Client), changed(change))

    assert list(refused(strategy)) == [BAD]
    assert reason in refused(strategy)[BAD]
    assert refused(strategy, "train") == {}


def test_a_mods_report_is_checked_likewise() -> None:
    strategy = run(BY_UNIT, plain_app([autoflip_mod]), changed(fill(0.0)))

    assert list(refused(strategy)) == [BAD]


def test_nobody_moved_is_one_clear_line() -> None:
    class Idle(Client):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            return 12, {}

    with pytest.raises(AutoFlipError, match="report: nothing moved; does train"):
        run(PAPER, client_app(Idle))


def says(**metadata: Any) -> Any:
    """Let node ``BAD`` say something else of its report."""

    def fault(node: int, reply: Message) -> Message:
        config = next(iter(reply.content.config_records.values()), {})
        if node == 100 + BAD and "autoflip-scale" in config:
            config.update({f"autoflip-{key}": value for key, value in metadata.items()})
        return reply

    return fault


def test_sizes_of_2_to_the_60_are_outliers() -> None:
    strategy = run(BY_UNIT, client_app(Client), says(scale=2.0**-46))

    assert list(refused(strategy)) == [BAD]
    assert "its parameters moved by" in refused(strategy)[BAD]


# --- What nodes say of noise ---


def test_what_nodes_say_of_noise_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flwr"):
        strategy = run(BY_UNIT, client_app(Client), says(privacy="epsilon:8"))

    said = "1 of 6 reports were noised by their nodes, who say: epsilon:8.0,delta:1e-05"
    assert said in caplog.text
    assert refused(strategy) == {}


@pytest.mark.filterwarnings("ignore:T_p")
@pytest.mark.parametrize(
    ("method", "privacy", "reason"),
    [
        (BY_UNIT, "a lot", "report: autoflip-privacy must be 'epsilon:8'"),
        (PAPER, "epsilon:8", "'deviations' cannot be noised as this one says"),
    ],
)
def test_noise_that_cannot_be_is_refused(
    method: Any, privacy: str, reason: str
) -> None:
    strategy = run(method, client_app(Client), says(privacy=privacy))

    assert list(refused(strategy)) == [BAD]
    assert reason in refused(strategy)[BAD]
