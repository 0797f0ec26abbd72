"""The benchmarks of bad and of private explorers: what they do is what they say."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mlxtend")
pytest.importorskip("flwr_datasets")

from examples.benchmarks import explored, privacy, robustness
from examples.benchmarks.explored import Cell, Outcome, Results, overlap
from flwr_autoflip.wire.privacy import ReportPrivacy

MOVED = {
    t.name: np.random.default_rng(3).standard_normal(t.shape, np.float32)
    for t in robustness.layout().tensors
}


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Explorers draw how they move."""

    def draw(seed: int, node: int, nodes: int, flips: bool) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, node, flips])
        return {n: rng.standard_normal(v.shape, np.float32) for n, v in MOVED.items()}

    monkeypatch.setattr(explored, "explore", draw)
    monkeypatch.setattr(ReportPrivacy, "noise_std", lambda self: 1 / self.epsilon)


def test_overlap_by_hand() -> None:
    assert overlap([0, 1, 2], [1, 2, 3]) == 0.5
    assert overlap([4], [4]) == 1
    assert overlap([4], [5]) == 0


def test_who_misbehaves_is_nested() -> None:
    ten, thirty = (robustness.bad_nodes(1, percent) for percent in (10, 30))

    assert (len(ten), len(thirty)) == (2, 6)
    assert ten < thirty


@pytest.mark.parametrize(
    ("kind", "factor"),
    [("huge", 1000), ("large", 9), ("invert", 9), ("keep", 9), ("kill", 9)],
)
def test_attacks_have_the_norm_that_they_claim(kind: str, factor: float) -> None:
    attack = robustness.attack_of(kind, kept=[0, 20, 60])
    assert attack is not None

    sent = attack(MOVED)

    for name, values in sent.items():
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


def test_a_cell_is_not_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Results(tmp_path / "cells.jsonl")
    runs: list[int] = []

    def run(cell: Cell, rounds: int) -> Outcome:
        runs.append(rounds)
        return Outcome([1, 2], 0, [0.5] * bool(rounds))

    monkeypatch.setattr(explored, "run", run)
    cell = Cell(0, {})
    for name in ("one", "other"):  # two ways to the same plan: trained once
        for _ in range(2):
            row = explored.measure(results, {"rule": name}, cell, 3)
            assert row["top1"] == [0.5]
            results = Results(results.path)

    assert runs == [0, 3, 0]


@pytest.mark.slow
def test_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["robustness", "--seeds", "1", "--rounds", "0", "--percents", "20"]
    words += ["--attacks", "huge", "silent", "--rules", "guided"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path)])
    monkeypatch.setattr(robustness, "NODES", 10)

    robustness.main()

    lines = (tmp_path / "robustness.md").read_text().splitlines()
    cells = {line.split(" | ")[0]: line.split(" | ")[1:] for line in lines[2:]}
    # Refused is as if they had been silent.
    assert cells["| huge, 20 %"] == cells["| silent, 20 %"] != ["1.00 |"]
    rows = Results(tmp_path / "cells.jsonl").rows.values()
    refused = {(r["cell"]["rule"], r["cell"]["attack"]): r["refused"] for r in rows}
    assert refused["guided", "huge"] == 2


@pytest.mark.slow
def test_the_privacy_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["privacy", "--seeds", "1", "--rounds", "0", "--epsilons", "inf", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path)])
    monkeypatch.setattr(privacy, "CASES", (("units", 10),))

    privacy.main()

    lines = (tmp_path / "privacy.md").read_text().splitlines()
    assert [line.split(" | ")[2:4] for line in lines[4:]] == [
        ["inf", "0.00"],
        ["1", "1.00"],
    ]
