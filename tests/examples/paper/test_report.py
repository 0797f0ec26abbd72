"""The report: numbers by hand, the page, and what it says of bad input."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from paper_runs import RISING, SETTINGS, TWICE, UNITS, write_run, write_two_seeds
from rich.console import Console

from examples.paper.methods import METHODS
from examples.paper.models import SixLayerCNN
from examples.paper.records import collect, read_runs
from examples.paper.report.page import write_report
from examples.paper.report.paired import paired_markdown
from examples.paper.report.series import (
    curves,
    exploration,
    over_seeds,
    thresholds,
    variances,
)
from examples.paper.report.sizes import size_table
from examples.paper.report.tables import (
    accuracy_table,
    at_budget,
    best_methods,
    cost_table,
    cost_to_reach,
    window_mean,
)
from examples.paper.runs import Run
from examples.paper.tasks import TASKS
from flwr_autoflip import Plan, shrink, trace
from flwr_autoflip.ledger.cost import count_parameters
from flwr_autoflip.ledger.page.curves import Curve

pytestmark = pytest.mark.slow


def make_curve(top1: list[float], costs: list[float]) -> Curve:
    return Curve(*(np.array(v, float) for v in (top1, top1, costs, costs)))


def mnist(study: Path) -> dict:
    return read_runs(study).by_task()["mnist"]


def page_of(study: Path, out: Path) -> str:
    write_report(study, out, Console(quiet=True), "two cores")
    return (out / "report.md").read_text()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """FedAvg and AutoFLIP, two seeds each."""
    write_two_seeds(tmp_path / "study")
    return tmp_path / "study"


# --- One run ---


def test_accuracy_at_a_budget_is_the_mean_of_five_up_to_there() -> None:
    costs = [10, 20, 30, 40, 50, 60, 70]
    run = make_curve(RISING, costs)

    # rounds 1 to 5 are within 69; all 70 are within 79 and a round of 10 is not
    assert at_budget(run, costs, 69) == (pytest.approx(0.3), 1.0)
    assert at_budget(run, costs, 79) == (pytest.approx(0.4), 1.0)
    # at 100 there is room for more rounds, but the run ended
    assert at_budget(run, costs, 100) == (pytest.approx(0.4), pytest.approx(0.7))
    assert at_budget(run, costs, 9) is None
    values = [None, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert window_mean(values, 5) == pytest.approx(0.3)
    assert window_mean(values, 4) is None


def test_the_cost_to_reach_fedavg() -> None:
    baseline = make_curve(RISING, [0, 10, 20, 30, 40, 50, 60])
    run = make_curve([0.0, *[0.4] * 6], [3, 5, 7, 9, 11, 13, 15])

    # the target is FedAvg's .4 after round 6; the run's mean of five is .4 at round 5
    reached = cost_to_reach(run, baseline, 6)
    assert reached["target"] == pytest.approx(0.4)
    assert (reached["target_rounds"], reached["target_bytes"]) == (5, 13)
    assert reached["bytes_saved"] == pytest.approx(1 - 13 / 60)
    # FedAvg reaches its own figure, however the sums are rounded
    assert cost_to_reach(baseline, baseline, 6)["bytes_saved"] == 0
    never = make_curve([0.1] * 7, [0, 1, 2, 3, 4, 5, 6])
    assert set(cost_to_reach(never, baseline, 6)) == {"target"}


# --- Tables ---


def test_table_three_by_hand(study: Path) -> None:
    write_run(study, "autoflip-paper", RISING, 10, 200)
    write_run(study, "random", [0.9] * 13, 4)
    table = accuracy_table(mnist(study))

    fedavg = table["fedavg"]
    # means of .2 to .6, and of the same plus .02
    assert fedavg["rounds"].values == {0: pytest.approx(0.4), 1: pytest.approx(0.42)}
    assert fedavg["rounds"].mean == pytest.approx(0.41)
    assert fedavg["rounds"].deviation == pytest.approx(0.02 / 2**0.5)
    assert fedavg["dense"].mean == pytest.approx(0.205)
    assert fedavg["local"].mean == pytest.approx(0.1025)
    for column in ("macs", "bytes"):
        assert fedavg[column].values == fedavg["rounds"].values
        assert fedavg[column].mean_used == 1
        # 5 + 12 rounds of 4 is 53; one more is 57, still within FedAvg's 60
        assert table["autoflip"][column].mean == pytest.approx(0.7)
        assert table["autoflip"][column].used[1] == pytest.approx(53 / 60)
        # exploring takes 200, FedAvg 60 in all
        assert table["autoflip-paper"][column].values == {}
    # Random units have one seed of two.
    assert best_methods(table, "rounds", seeds=2) == {"fedavg"}
    assert best_methods(table, "bytes", seeds=2) == {"autoflip"}


def test_table_five_by_hand(study: Path) -> None:
    table = cost_table(mnist(study))

    # AutoFLIP: .4 at round 6 (5 + 24 bytes); .42 at round 7 (.5, 5 + 28 bytes)
    row = table["autoflip"]
    assert row["target_rounds"].values == {0: 6, 1: 7}
    assert row["target_bytes"].values == {0: 29, 1: 33}
    assert row["target_macs"].values == {0: 290, 1: 330}
    assert row["bytes_saved"].mean == pytest.approx(1 - (29 + 33) / 2 / 60)
    assert table["fedavg"]["bytes_saved"].mean == 0


def test_seed_by_seed(study: Path) -> None:
    write_run(study, "random", [0.0] * 13, 4)

    lines = paired_markdown(mnist(study)).splitlines()

    # 0.00 and -0.02: mean -1.0 points, 12.71 (t of one degree) times 2^-.5 times 1.41
    assert lines[2:] == [
        "| FedAvg | 0.410 |  | 1.00 | 1.00 | 2 |",
        "| AutoFLIP | 0.400 | -1.0 ±12.7 | 0.52 | 0.52 | 2 |",
        "| random units | 0.000 | -40.0 | never | never | 1 |",
    ]


def test_table_four_counts_networks_that_are_built(tmp_path: Path) -> None:
    dense = SixLayerCNN(width=SETTINGS["width"])
    layout = trace(dense, TASKS["mnist"].example_input)
    sizes = {g.name: min(g.size, UNITS[g.name]) for g in layout.groups}
    small = shrink(dense, Plan(layout, {n: np.arange(k) for n, k in sizes.items()}))
    plan = {"parameters": count_parameters(small) - 7, "zeros": 7, "units": sizes}
    plan["dense_parameters"] = count_parameters(dense)
    write_run(tmp_path, "autoflip", TWICE, 4, plan=plan)
    table = size_table(mnist(tmp_path))

    # conv 3x3: 1->2, 2->3, 3->4, 4->5; linear: 5 maps of 2x2 -> 6, 6 -> 10
    weights = 9 * (2 + 6 + 12 + 20) + 2 + 3 + 4 + 5 + 20 * 6 + 6 + 60 + 10
    macs = 9 * (2 * 784 + 6 * 196 + 12 * 49 + 20 * 9) + 20 * 6 + 60
    row = table["autoflip"]
    assert (row["parameters"], row["macs"], row["zeros"]) == (weights, macs, 7)
    assert row["thop_macs"] >= macs  # THOP counts pooling as well
    assert table["dense"]["macs"] > macs
    plan["parameters"] += 1
    write_run(tmp_path, "autoflip", TWICE, 4, seed=1, plan=plan)
    with pytest.raises(ValueError, match="the model has changed since"):
        size_table(mnist(tmp_path))


# --- Figures ---


def test_series_by_hand(study: Path) -> None:
    write_run(study, "prunefl", TWICE, 4)
    methods = mnist(study)

    assert over_seeds({0: [1, 2, np.nan], 3: [3, 6, 1, 9]}) == {
        "mean": [2, 4, None],
        "low": [1, 2, None],
        "high": [3, 6, None],
        "seeds": [0, 3],
    }
    # twelve rounds were run; the figure ends with FedAvg's six
    expected = pytest.approx([1 / n for n in range(1, 7)], rel=1e-5)
    assert variances(methods)["autoflip"]["mean"] == expected
    panels = curves(methods)
    assert {title: list(panel) for title, panel in panels.items()} == {
        "AutoFLIP, guided, random units": ["fedavg", "autoflip"],
        "PruneFL": ["fedavg", "autoflip", "prunefl"],
    }
    assert panels["PruneFL"]["prunefl"]["mean"][3:6] == [None, 0.2, 0.3]


def test_ablations_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path, "explore-0.5-2", RISING, 10, 20)
    plan = {"parameters": 30, "zeros": 10, "dense_parameters": 100, "units": {}}
    write_run(tmp_path, "threshold-0.3", RISING, 10, plan=plan)

    [point] = exploration(mnist(tmp_path))
    assert (point["fraction"], point["epochs"]) == (0.5, 2)
    assert point["top1"]["mean"] == pytest.approx(0.4)
    assert point["exploration_share_of_macs"] == pytest.approx(20 / 80)
    [point] = thresholds(mnist(tmp_path))
    assert point["threshold"] == 0.3
    assert (point["parameters_kept"], point["nonzero_kept"]) == (0.4, 0.3)


# --- The page ---


def test_the_page_the_numbers_and_the_pictures(study: Path) -> None:
    write_run(study, "random", TWICE, 4)
    for name in ("explore-0.25-1", "explore-0.25-2", "threshold-0.1", "threshold-0.5"):
        write_run(study, name, RISING, 10, 5)
    out = study.parent / "out"

    page = page_of(study, out)

    lines = page.splitlines()
    assert lines[0] == "# The comparison, scale small"
    # 2 * 60 + 2 * 53 + 48 + 4 * 65 bytes; 9 runs of two seconds
    assert "- Scale small: 9 runs, 0.00 GB moved, 0.000 TMACs computed, 18 s, " in page
    assert "- Hardware: two cores." in page
    assert "| FedAvg | **0.410 ±0.014** | 0.410 ±0.014 |" in page
    assert "| AutoFLIP | 2 of 2 | 0.410 | 6.5 | 0.0 | 0.0 | 48 % | 48 % |" in page
    # the ablations are not in the tables
    assert (
        "--task mnist --methods fedavg,autoflip,random --seeds 2 --scale small`: "
        "5 runs, 0.00 GB moved, 0.000 TMACs computed, 10 s, 0 replies lost; two cores."
    ) in page
    short = page.split("## In short")[1].split("## Table")[0]
    assert "| 2/2 | 0.52 | 0.52 |" in short
    assert "| random units [1 of 2 seeds] | 0.400 |" in short
    assert "0.400 / 0.995 / 0.344" in page
    # the fake runs' plan has no units, which is said, and the rest is there
    assert "Table IV, mnist, is left out" in page
    numbers = json.loads((out / "results.json").read_text())
    assert numbers["totals"]["bytes"] == 534
    assert {name.split("-")[0] for name in numbers["figures"]} == {
        f"figure{number}" for number in (4, 7, 8, 9)
    }
    for name in numbers["figures"]:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({name}.png)" in page


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no finished run; make some with") as caught:
        write_report(tmp_path / "study", tmp_path / "out", Console(quiet=True))
    with pytest.raises(ValueError, match="no finished run"):
        collect(tmp_path / "study")

    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"top1": [0.1]}, "top1 has 1 of 13 entries"),
        ({"top1": [float("nan")] * 13}, "top1 is not there"),
        ({"plan": {}}, "KeyError"),
        ({"bytes": None}, "TypeError"),
    ],
)
def test_a_damaged_run_is_named(study: Path, damage: dict, said: str) -> None:
    write_run(study, "guided", TWICE, 4, changes=damage)

    with pytest.raises(ValueError, match="mnist/guided/seed0 is damaged") as caught:
        read_runs(study)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_longer_runs_refusals_and_what_was_lost(study: Path) -> None:
    longer = [*TWICE, *[0.9] * 12]
    for seed in (0, 1):
        write_run(study, "autoflip-4x", longer, 4, 5, seed=seed)
    for name in set(METHODS) - {"fedavg", "autoflip", "eflprune-bn", "fedavg-int8"}:
        write_run(study, name, [0.0] * 13, 4)
    failure = {"status": "refused", "first_round": 3, "reason": "values too large"}
    made = {"version": "0.1.0", "commit": "abc", "torch": "2.9", "date": "2026-11-28"}
    lost = {"lost": 1, "failures": [failure], "provenance": made}
    write_run(study, "fedavg-int8", RISING, 10, changes=lost)
    refusal = {"refused": "no BatchNorm here"}
    write_run(study, "eflprune-bn", TWICE, 4, changes=refusal)

    page = page_of(study, study.parent / "out")

    third = page.split("## Table")[1]
    short = page.split("## In short")[1].split("## Table")[0]
    line = next(line for line in short.splitlines() if "4x the rounds" in line)
    assert line.endswith("|  |  |  |")
    assert "| AutoFLIP, 4x the rounds |" in third
    assert "--task mnist --methods all,longer --seeds 2" in page
    assert "Refused, mnist, EFLPrune (bn): no BatchNorm here" in page
    assert "- Made with flwr-autoflip 0.1.0, commit abc, torch 2.9: 1 run(s)." in page
    assert "- Without a record of what they were made with: 27 run(s)." in page
    said = "8 bits, seed 0: 1 (refused in round 3: values too large)."
    assert f"- Replies lost, mnist, FedAvg, {said}" in page


# --- One file ---


def put_away(study: Path) -> Path:
    """Collect, and leave nothing but the file."""
    path = collect(study)
    shutil.rmtree(study)
    return path


def test_a_file_says_the_same_as_folders_and_is_always_the_same(study: Path) -> None:
    expected = page_of(study, study.parent / "folders")

    path = put_away(study)

    first = path.read_bytes()
    assert page_of(study, study.parent / "file") == expected
    assert collect(study).read_bytes() == first
    with gzip.open(path, "rt") as file:
        names = [json.loads(line)["run"] for line in file]
    assert names == [
        f"mnist/{method}/seed{seed}"
        for method in ("autoflip", "fedavg")
        for seed in (0, 1)
    ]


def test_a_run_that_is_put_away_is_done_until_it_is_made_again(study: Path) -> None:
    put_away(study)

    assert Run(study, "mnist", "small", METHODS["autoflip"], 0).done
    assert not Run(study, "mnist", "small", METHODS["autoflip"], 2).done
    write_run(study, "fedavg", [0.9] * len(RISING), 10, seed=1)
    put_away(study)
    assert [one.result["top1"][0] for one in mnist(study)["fedavg"]] == [0.0, 0.9]


def test_damage_is_one_line_and_changes_nothing(study: Path) -> None:
    path = put_away(study)
    whole = path.read_bytes()
    write_run(study, "random", TWICE, 4).joinpath("run.json").write_text("{")
    with pytest.raises(ValueError, match="random/seed0 cannot be read"):
        collect(study)
    assert path.read_bytes() == whole

    for damaged in (whole[:-20], b"no gzip", gzip.compress(b"[]\n")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged") as caught:
            read_runs(study)
        assert "\n" not in str(caught.value)
