"""Explorers that misbehave are refused with node and reason, or bounded."""

import logging
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from federation import EXAMPLE, Client, TinyNet, node_data, plain_app
from flwr.app import Array, ArrayRecord, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from grid import refused, start
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


def run(method: Any, app: ClientApp | None = None, fault: Any = None) -> AutoFlip:
    inner = FedAvg(fraction_evaluate=0.0)
    options: dict[str, Any] = {"method": method, "value_dtype": "float32"}
    strategy = AutoFlip(inner, TinyNet(), EXAMPLE, **options)
    start(strategy, 1, NODES, app, fault)
    return strategy


# --- A node's scale ---


@pytest.mark.parametrize("method", [Guided(threshold=HALF), BY_UNIT], ids=str)
@pytest.mark.parametrize("factor", [9.0, 0.01])
def test_a_louder_explorer_decides_no_more_than_others(
    method: Any, factor: float
) -> None:
    honest, loud = (run(method, times(f, BAD)) for f in (1.0, factor))

    assert refused(loud) == {}
    np.testing.assert_array_equal(
        honest.deployable_plan.alive, loud.deployable_plan.alive
    )


def test_a_report_that_is_an_outlier_is_refused_with_node_and_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = times(100.0, BAD)
    with caplog.at_level(logging.WARNING, "flwr"):
        strategy = run(BY_UNIT, app)

    assert list(refused(strategy, "explore")) == [BAD]
    assert "the round's median is" in refused(strategy, "explore")[BAD]
    text = "refused reply of node 102: report: its parameters moved by"
    assert text in caplog.text
    assert list(refused(run(Guided(threshold=HALF), app), "train")) == [BAD]


def test_if_most_are_outliers_nobody_is() -> None:
    assert refused(run(BY_UNIT, times(100.0, 1, 2, 4, 5)), "explore") == {}


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

    assert refused(strategy) == {}


# --- Reports that say nothing, or nonsense ---

Change = Callable[[np.ndarray], np.ndarray]


def spoilt(spoil: Callable[[Any, Any], None]) -> Any:
    """Let node ``BAD`` report something else: its arrays and metadata are changed."""

    def fault(node: int, reply: Message) -> Message:
        config = next(iter(reply.content.config_records.values()), {})
        if node == 100 + BAD and "autoflip-scale" in config:
            spoil(reply.content, config)
        return reply

    return fault


def changed(change: Change) -> Any:
    """Change a report's numbers, and seal it again."""

    def spoil(content: Any, metadata: Any) -> None:
        ((key, record),) = content.array_records.items()
        ((name, array),) = record.items()
        values = change(array.numpy().copy())
        content[key] = ArrayRecord({name: Array(values)})
        metadata["autoflip-checksum"] = zlib.crc32(values.tobytes())

    return spoilt(spoil)


def says(**metadata: Any) -> Any:
    """Say something else of a report."""
    named = {f"autoflip-{key}": value for key, value in metadata.items()}
    return spoilt(lambda content, config: config.update(named))


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
    strategy = run(method, fault=changed(change))

    assert list(refused(strategy, "explore")) == [BAD]
    assert reason in refused(strategy, "explore")[BAD]
    assert refused(strategy, "train") == {}


def test_a_mods_report_is_checked_likewise() -> None:
    strategy = run(BY_UNIT, plain_app([autoflip_mod]), changed(fill(0.0)))

    assert list(refused(strategy, "explore")) == [BAD]


def test_nobody_moved_is_one_clear_line() -> None:
    class Idle(Client):
        def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
            return 12, {}

    with pytest.raises(AutoFlipError, match="report: nothing moved; does train"):
        run(PAPER, client_app(Idle))


def test_sizes_of_2_to_the_60_are_outliers() -> None:
    strategy = run(BY_UNIT, fault=says(scale=2.0**-46))

    assert list(refused(strategy, "explore")) == [BAD]
    assert "its parameters moved by" in refused(strategy, "explore")[BAD]


# --- What nodes say of noise ---


def test_what_nodes_say_of_noise_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flwr"):
        strategy = run(BY_UNIT, fault=says(privacy="epsilon:8"))

    said = "1 of 6 reports were noised by their nodes, who say: epsilon:8.0,delta:1e-05"
    assert said in caplog.text
    assert refused(strategy, "explore") == {}


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
    strategy = run(method, fault=says(privacy=privacy))

    assert list(refused(strategy, "explore")) == [BAD]
    assert reason in refused(strategy, "explore")[BAD]
