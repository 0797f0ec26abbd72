"""The report's page, its pictures, and what it says of bad input."""

import json
from pathlib import Path

import pytest
from paper_runs import RISING, TWICE, write_run, write_two_seeds
from rich.console import Console

from examples.paper.methods import METHODS
from examples.paper.report import write_report


@pytest.fixture
def two_seeds(tmp_path: Path) -> Path:
    """Give a folder of FedAvg and AutoFLIP, two seeds each."""
    write_two_seeds(tmp_path)
    return tmp_path


def page_of(root: Path, out: Path, data: str = "") -> str:
    write_report(root / "small", out, Console(quiet=True), data, "two cores")
    return (out / "report.md").read_text()


def test_the_page_the_numbers_and_the_pictures(two_seeds: Path, tmp_path: Path) -> None:
    write_run(two_seeds, "random", TWICE, 4)
    for name in ("explore-0.25-1", "explore-0.25-2", "threshold-0.1", "threshold-0.5"):
        write_run(two_seeds, name, RISING, 10, 5)
    page = page_of(two_seeds, tmp_path / "out")

    lines = page.splitlines()
    assert lines[0] == "# Where AutoFLIP loses, scale small"
    assert lines[2].startswith("- mnist, equal rounds: better are FedAvg, 0.410")
    # 2 * 60 + 2 * 53 + 48 + 4 * 65 bytes; 9 runs of two seconds
    assert "- Scale small: 9 runs, 0.00 GB moved, 0.000 TMACs computed, 18 s, " in page
    assert "- Hardware: two cores." in page
    assert "| FedAvg | **0.410 ±0.014** | 0.410 ±0.014 |" in page
    assert "| AutoFLIP | 2 of 2 | 0.410 | 6.5 | 0.0 | 0.0 | 48 % | 48 % |" in page
    # 2 * 60 + 2 * 53 + 48 bytes of five runs; the ablations are not in the tables
    assert (
        "--task mnist --methods fedavg,autoflip,random --seeds 2 --scale small`: "
        "5 runs, 0.00 GB moved, 0.000 TMACs computed, 10 s, 0 replies lost; two cores."
    ) in page
    short = page.split("## In short")[1].split("## Table")[0]
    assert "| FedAvg | **0.410 ±0.014** | 0.410 ±0.014 |" in short
    assert "| 2/2 | 0.52 | 0.52 |" in short
    assert "| random units [1 of 2 seeds] | 0.400 |" in short
    assert "0.400 / 0.995 / 0.344" in page
    # the fake runs' plan has no units, which is said, and the rest is there
    assert "Table IV, mnist, is left out" in page
    assert "Figure 6 (partition) is left out: it needs --data." in page
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    assert numbers["totals"]["bytes"] == 534
    cell = numbers["table_iii"]["mnist"]["autoflip"]["bytes"]
    assert cell["budget_used"] == {
        "0": pytest.approx(53 / 60),
        "1": cell["budget_used"]["1"],
    }
    for name in numbers["figures"]:
        picture = (tmp_path / "out" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert f"({name}.png)" in page
    drawn = {name.split("-")[0] for name in numbers["figures"]}
    assert drawn == {"figure4", "figure5", "figure7", "figure8", "figure9"}


def test_the_partition_needs_data_and_says_what_is_missing(
    two_seeds: Path, tmp_path: Path, data_dir: Path
) -> None:
    page_of(two_seeds, tmp_path / "with", str(data_dir))
    assert (tmp_path / "with" / "figure6-partition.png").exists()

    page = page_of(two_seeds, tmp_path / "without", str(tmp_path / "nowhere"))
    assert "Figure 6, mnist, is left out" in page


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no finished run; make some with") as caught:
        write_report(tmp_path / "small", tmp_path / "out", Console(quiet=True))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"top1": [0.1]}, "top1 has 1 of 13 entries"),
        ({"top1": [float("nan")] * 13}, "top1 is not there"),
        ({"plan": {}}, "KeyError"),
        ({"bytes": None}, "TypeError"),
    ],
)
def test_a_damaged_run_is_named_and_skipped(
    two_seeds: Path, tmp_path: Path, damage: dict, said: str
) -> None:
    write_run(two_seeds, "guided", TWICE, 4, changes=damage)
    page = page_of(two_seeds, tmp_path / "out")

    assert f"Damaged and skipped: mnist/guided/seed0: {said}" in page.replace(
        "ValueError: ", ""
    )
    assert "| AutoFLIP, guided |" not in page


def test_a_cut_file_a_refusal_and_a_run_under_way(
    two_seeds: Path, tmp_path: Path
) -> None:
    cut = write_run(two_seeds, "guided", TWICE, 4) / "run.json"
    cut.write_text(cut.read_text()[:50])
    refusal = write_run(two_seeds, "eflprune-bn", TWICE, 4) / "run.json"
    refusal.write_text(json.dumps({"refused": "no BatchNorm here"}))
    (write_run(two_seeds, "random", TWICE, 4) / "run.json").unlink()
    page = page_of(two_seeds, tmp_path / "out")

    assert "Damaged and skipped: mnist/guided/seed0: JSONDecodeError" in page
    assert "Refused, mnist, EFLPrune (bn): no BatchNorm here" in page
    assert "1 run(s) are not finished" in page


def test_a_longer_run_is_in_table_three_but_no_rival(
    two_seeds: Path, tmp_path: Path
) -> None:
    longer = [*TWICE, *[0.9] * 12]
    for seed in (0, 1):
        write_run(two_seeds, "autoflip-4x", longer, 4, 5, seed=seed)
    for name in set(METHODS) - {"fedavg", "autoflip", "eflprune-bn"}:
        write_run(two_seeds, name, [0.0] * 13, 4)
    refusal = write_run(two_seeds, "eflprune-bn", TWICE, 4) / "run.json"
    refusal.write_text(json.dumps({"refused": "no BatchNorm here"}))

    page = page_of(two_seeds, tmp_path / "out")

    first, third = page.split("## What was run")[0], page.split("## Table")[1]
    short = page.split("## In short")[1].split("## Table")[0]
    line = next(line for line in short.splitlines() if "4x the rounds" in line)
    assert line.endswith("|  |  |  |")
    assert "| AutoFLIP, 4x the rounds |" in third
    assert "4x the rounds" not in first
    assert "--task mnist --methods all,longer --seeds 2" in page
