"""Differences seed by seed, by hand."""

import sys
from pathlib import Path

import pytest
from paper_runs import RISING, TWICE, write_run, write_two_seeds

from examples.paper.paired import Difference, compare, difference
from examples.paper.results import by_method, read_runs
from examples.paper.study import main, study_markdown
from examples.paper.tables import Cell


def test_the_interval_is_students() -> None:
    found = difference(Cell({0: 1.0, 1: 2.0, 2: 6.0}), Cell({0: 0.0, 1: 0.0, 2: 0.0}))

    # Mean 3, sd sqrt(7), t(.975, 2) = 4.3027, over sqrt(3).
    assert found is not None
    assert found.mean == pytest.approx(3)
    assert found.half_width == pytest.approx(4.30265 * 7**0.5 / 3**0.5, rel=1e-5)
    assert not found.certain


def test_only_seeds_of_both_count() -> None:
    assert difference(Cell({0: 0.5}), Cell({0: 0.4, 1: 9.0})) == Difference(
        pytest.approx(0.1), None, 1
    )
    assert difference(Cell({0: 0.5}), Cell({1: 0.5})) is None


def test_a_sure_difference_is_bold(tmp_path: Path) -> None:
    for seed in (0, 1):
        shift = 0.01 * seed
        write_run(tmp_path, "fedavg", RISING, 10, seed=seed)
        write_run(tmp_path, "random-0.1", TWICE, 4, seed=seed)
        better = [value + 0.1 + shift for value in TWICE]
        write_run(tmp_path, "l1-0.1", better, 4, seed=seed)
    methods = by_method(read_runs(tmp_path / "small").outcomes, "mnist")

    compared = compare(methods, {"l1-0.1": "random-0.1"})
    text = study_markdown(compared)

    assert compared["l1-0.1"].to_baseline == compared["l1-0.1"].to_rival
    assert compared["l1-0.1"].to_rival == Difference(
        pytest.approx(0.105), pytest.approx(12.7062 * 0.005, rel=1e-4), 2
    )
    assert "| **+10.5 ±6.4** | **+10.5 ±6.4** |" in text
    # FedAvg's last five mean .4 at round 6; so do random units', at 4 a round.
    assert (
        "| random units, 0.1 of the MACs | 0.400 | +0.0 ±0.0 | - | 0.40 | 0.40 | 2 |"
        in text
    )


def test_a_seed_without_fedavg_has_no_cost(tmp_path: Path) -> None:
    write_run(tmp_path, "fedavg", RISING, 10, seed=0)
    for seed in (0, 1):
        write_run(tmp_path, "random-0.1", TWICE, 4, seed=seed)
    write_run(tmp_path, "random-0.5", TWICE, 4, seed=1)
    methods = by_method(read_runs(tmp_path / "small").outcomes, "mnist")

    text = study_markdown(compare(methods, {}))

    assert "| 0.400 | +0.0 | - | 0.40 | 0.40 | 2 |" in text
    assert "| 0.400 | - | - | - | - | 1 |" in text


def test_the_program_prints_a_table_a_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_two_seeds(tmp_path)
    write_run(tmp_path, "autoflip", TWICE, 4, task="cifar10")
    monkeypatch.setattr(sys, "argv", ["study", "--out", str(tmp_path)])

    main()

    mnist, cifar10 = capsys.readouterr().out.split("### ")[1:]
    assert mnist.startswith("mnist\n\n| method")
    assert cifar10 == "cifar10\n\nno table: run --methods fedavg, too\n\n"
