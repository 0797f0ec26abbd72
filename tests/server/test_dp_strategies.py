"""Flower's four differential-privacy strategies: inside ours, and not around it."""

from typing import Any

import numpy as np
import pytest
from federation import EXAMPLE, RANDOM, Client, TinyNet, initial, plain_app
from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from grid import LocalGrid

from flwr_autoflip import AutoFlip, AutoFlipError, autoflip_mod, client_app
from flwr_autoflip.ledger.ledger import node_rows

NODES, NORM = 4, 0.05

WRAPPERS: dict[str, Any] = {
    "server-fixed": lambda inner, noise: DifferentialPrivacyServerSideFixedClipping(
        inner, noise, NORM, NODES
    ),
    "server-adaptive": lambda i, noise: DifferentialPrivacyServerSideAdaptiveClipping(
        i, noise, NODES, NORM
    ),
    "client-fixed": lambda inner, noise: DifferentialPrivacyClientSideFixedClipping(
        inner, noise, NORM, NODES
    ),
    "client-adaptive": lambda i, noise: DifferentialPrivacyClientSideAdaptiveClipping(
        i, noise, NODES, NORM
    ),
}


def app_of(kind: str) -> Any:
    """Give the client side that a wrapper wants."""
    if kind.startswith("server"):
        return client_app(Client)
    mod = fixedclipping_mod if kind == "client-fixed" else adaptiveclipping_mod
    return plain_app([autoflip_mod, mod])


class Watched(AutoFlip):
    """AutoFlip that notes how far each aggregation moves the model."""

    def __init__(self, inner: Strategy) -> None:
        super().__init__(inner, TinyNet(), EXAMPLE, method=RANDOM)
        self.moved: list[dict[str, np.ndarray]] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Any:
        self.before = {name: a.numpy().copy() for name, a in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        after = {name: a.numpy() for name, a in arrays.items()}
        self.moved.append({n: after[n] - self.before[n] for n in after})
        return arrays, metrics


def run(kind: str, noise: float, rounds: int = 2) -> Watched:
    strategy = Watched(WRAPPERS[kind](FedAvg(fraction_evaluate=0.0), noise))
    strategy.start(LocalGrid(app_of(kind), NODES), initial(), num_rounds=rounds)
    return strategy


def norm_of(moved: dict[str, np.ndarray]) -> float:
    """Norm of what moved; counters of no dimension are not clipped by Flower."""
    parts = [v.astype(float).ravel() for v in moved.values() if v.ndim]
    return float(np.linalg.norm(np.concatenate(parts)))


@pytest.mark.parametrize("kind", WRAPPERS)
def test_inside_what_is_aggregated_is_clipped(kind: str) -> None:
    strategy = run(kind, noise=0.0)
    free = Watched(FedAvg(fraction_evaluate=0.0))
    free.start(LocalGrid(client_app(Client), NODES), initial(), num_rounds=2)

    bound = NORM * (np.exp(0.3) if "adaptive" in kind else 1) * 1.001
    assert {row["status"] for row in node_rows(strategy.ledger.rows)} == {"ok"}
    assert strategy.deployable_plan.num_parameters < strategy.layout.num_parameters
    for clipped, whole in zip(strategy.moved, free.moved, strict=True):
        assert 0 < norm_of(clipped) <= bound
        assert norm_of(whole) > 2 * bound


@pytest.mark.parametrize("kind", WRAPPERS)
def test_inside_noise_reaches_what_is_kept_and_nothing_else(
    kind: str,
) -> None:
    quiet, noised = (run(kind, noise, 1) for noise in (0.0, 0.3))

    mask = noised.deployable_plan.dense_mask("fc1.weight")
    noise = noised.moved[0]["fc1.weight"] - quiet.moved[0]["fc1.weight"]
    # Adaptive: the norm's own noise takes a part, so more is added to the values.
    size = (0.3 if "fixed" in kind else 0.4535) * NORM / NODES
    assert np.std(noise[mask]) == pytest.approx(size, rel=0.2)
    np.testing.assert_array_equal(noise[~mask], 0)


@pytest.mark.parametrize("kind", WRAPPERS)
def test_around_is_one_clear_line(kind: str) -> None:
    strategy = WRAPPERS[kind](AutoFlip(FedAvg(), TinyNet(), EXAMPLE), 0.1)

    with pytest.raises(AutoFlipError, match=r"AutoFlip\(DifferentialPrivacy\.\.\."):
        strategy.start(LocalGrid(app_of(kind), NODES), initial(), num_rounds=1)
