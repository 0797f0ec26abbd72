"""The benchmarks do what they say, on a small scale."""

import numpy as np
import pytest
import torch
from torch import nn

from examples.benchmarks import attacks, churn, privacy, robustness, server
from flwr_autoflip.wire.privacy import ReportPrivacy


def test_forty_rounds_of_churn_lose_no_accepted_update() -> None:
    found = churn.run(nodes=30, rounds=40)

    statuses, beside = found["statuses"], found["beside"]
    assert statuses["ok"] == found["honest"] > 500
    assert statuses["refused"] == beside["refused"] > 100
    assert statuses["failed"] == beside["error"] > 100
    assert statuses["missing"] == beside["missing"] > 100
    assert sum(statuses.values()) == 30 * 40
    assert min(beside["again"], beside["old"], beside["stranger"]) > 40
    assert found["largest_difference"] < 1e-5
    memory = found["resident_mb"]
    assert memory[40] < 1.05 * memory[10]


def test_the_grid_notices_a_reply_that_is_not_in_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    average = churn.FedAvg.aggregate_train
    monkeypatch.setattr(
        churn.FedAvg,
        "aggregate_train",
        lambda self, server_round, replies: average(
            self, server_round, list(replies)[1:]
        ),
    )

    assert churn.run(nodes=10, rounds=3)["largest_difference"] > 1e-4


# --- The server's time and memory ---


def tiny() -> nn.Module:
    """Two layers, 1,562 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(49, 30), nn.ReLU(), nn.Linear(30, 2))


@pytest.fixture
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(server.MODELS, "tiny", (tiny, torch.zeros(1, 1, 7, 7)))


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize("kind", ["FedAvg", *server.ROUNDS])
def test_all_replies_of_a_round_count(kind: str) -> None:
    run = server.prepare("tiny", kind, 3)

    assert run() > 0  # it asserts that each reply was accepted
    assert run() > 0


def test_ratios_are_to_the_first_round() -> None:
    rounds = {"one": lambda: 2.0, "other": lambda: 3.0}

    assert server.measure(rounds, 3) == {"one": 1.0, "other": 1.5}


# --- Bad and private explorers ---

MOVED = {
    t.name: np.random.default_rng(3).standard_normal(t.shape, np.float32)
    for t in robustness.layout().tensors
}


@pytest.fixture
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Explorers draw how they move."""

    def draw(seed: int, node: int, nodes: int, flips: bool) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, node, flips])
        return {n: rng.standard_normal(v.shape, np.float32) for n, v in MOVED.items()}

    monkeypatch.setattr(robustness, "explore", draw)


def test_who_misbehaves_is_nested_and_overlap_is_jaccards() -> None:
    ten, thirty = (robustness.bad_nodes(1, percent) for percent in (10, 30))

    assert (len(ten), len(thirty)) == (2, 6)
    assert ten < thirty
    assert robustness.overlap([0, 1, 2], [1, 2, 3]) == 0.5


@pytest.mark.parametrize(
    ("kind", "factor"),
    [("huge", 1000), ("large", 9), ("invert", 9), ("keep", 9), ("kill", 9)],
)
def test_attacks_have_the_norm_that_they_claim(kind: str, factor: float) -> None:
    attack = robustness.attack_of(kind, kept=[0, 20, 60])
    assert attack is not None

    for name, values in attack(MOVED).items():
        size = np.linalg.norm(values) / np.linalg.norm(MOVED[name])
        assert size == pytest.approx(factor, rel=1e-3), name


def test_inverted_and_colluding_updates_say_what_they_should() -> None:
    inverted = robustness.invert(MOVED)["fc1.weight"]
    kill = robustness.attack_of("kill", kept=[0, 48])  # a filter and a neuron
    keep = robustness.attack_of("keep", kept=[0])
    assert kill is not None
    assert keep is not None

    assert np.abs(inverted).argmin() == np.abs(MOVED["fc1.weight"]).argmax()
    assert not kill(MOVED)["conv1.weight"][0].any()
    assert not kill(MOVED)["fc1.weight"][0].any()
    assert kill(MOVED)["fc1.weight"][1:].all()
    kept = np.flatnonzero(keep(MOVED)["conv1.bias"])
    np.testing.assert_array_equal(kept, [1, 2])  # an eighth of 16, none that stays


@pytest.mark.slow
@pytest.mark.usefixtures("_no_training")
def test_who_is_refused_is_as_if_silent() -> None:
    huge, silent = (robustness.measure("mean", k, 20, 0) for k in ("huge", "silent"))

    assert (huge.refused, silent.refused) == (4, 0)
    assert huge.kept == silent.kept != robustness.honest("mean", 0).kept


@pytest.mark.slow
@pytest.mark.usefixtures("_no_training")
def test_noise_changes_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReportPrivacy, "noise_std", lambda self: 1 / self.epsilon)

    plain, bound, noised = (
        privacy.explore(10, epsilon, 1, 0)[0].kept for epsilon in ("", "inf", "1")
    )

    assert robustness.overlap(plain, noised) < 0.5 < robustness.overlap(plain, bound)


# --- One bad node ---


def sent(attack: str, before: torch.Tensor | None = None) -> torch.Tensor:
    received = {"w": torch.tensor([3.0, 4.0]), "n.running_var": torch.tensor([2.0])}
    honest = {"w": torch.tensor([3.0, 5.0]), "n.running_var": torch.tensor([1.5])}
    first = {"w": torch.tensor([0.0, 2.0]), "n.running_var": torch.tensor([1.0])}
    last = None if before is None else {"w": before}
    seen = attacks.Seen(received, honest, last, {"": 1.0}, first, frozenset({"w"}))
    made = attacks.ATTACKS[attack]
    assert made is not None
    return made(seen)["w"]


@pytest.mark.parametrize(
    ("attack", "before", "expected"),
    [
        ("nobody is bad", None, [3, 5]),
        ("minus the model", None, [-3, -4]),
        ("minus the model x 9.9", None, [-29.7, -39.6]),
        # The others moved by 1; the first model lay along the second axis.
        ("slow drip of one direction", None, [3, 4 - attacks.INSIDE]),
        ("undoing the others' steps", None, [3, 5]),
        ("undoing the others' steps", [2.0, 4.0], [3 - attacks.INSIDE, 4]),
    ],
)
def test_attacks_by_hand(
    attack: str, before: list[float] | None, expected: list[float]
) -> None:
    last = None if before is None else torch.tensor(before)

    assert sent(attack, last).tolist() == pytest.approx(expected)
    noise = sent("noise to the limit") - torch.tensor([3.0, 4.0])
    assert float(noise.norm()) == pytest.approx(attacks.INSIDE, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "inner", "refused"),
    [("minus the model x 9.9", "FedAvg", 2), ("nobody is bad", "Krum", 0)],
)
def test_the_model_turned_round_is_refused_in_every_round(
    attack: str, inner: str, refused: int
) -> None:
    _, bad, honest = attacks.run(attacks.Cell("BatchNorm", inner, 4, attack, 0), 2)

    assert (bad, honest) == (refused, 0)
