"""Every number of the report against one computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from paper_runs import RISING, SETTINGS, TWICE, UNITS, write_run, write_two_seeds
from torch.utils.data import TensorDataset

from examples.paper.markdown import show_accuracy
from examples.paper.models import SixLayerCNN
from examples.paper.results import by_method, read_runs
from examples.paper.series import (
    count_classes,
    curves,
    exploration,
    over_seeds,
    thresholds,
    variances,
)
from examples.paper.sizes import size_table
from examples.paper.tables import (
    Cell,
    accuracy_table,
    at_budget,
    best_methods,
    cost_table,
    cost_to_reach,
    last_round_within,
    window_mean,
)
from examples.paper.tasks import Federation
from examples.paper.verdict import random_is_close, where_autoflip_loses
from flwr_autoflip.graph.shrink import shrink
from flwr_autoflip.ledger.cost import count_parameters
from flwr_autoflip.ledger.page.curves import Curve


def make_curve(top1: list[float], costs: list[float]) -> Curve:
    return Curve(*(np.array(v, float) for v in (top1, top1, costs, costs)))


def mnist(root: Path, *names: str) -> dict:
    found = by_method(read_runs(root / "small").outcomes, "mnist")
    return {name: found[name] for name in names or found}


@pytest.fixture
def two_seeds(tmp_path: Path) -> Path:
    """Give a folder of FedAvg and AutoFLIP, two seeds each."""
    write_two_seeds(tmp_path)
    return tmp_path


# --- One run ---


def test_the_last_round_within_a_budget() -> None:
    costs = [5, 10, 15, 20]

    assert last_round_within(costs, 15) == 2
    assert last_round_within(costs, 19.9) == 2
    assert last_round_within(costs, 99) == 3
    assert last_round_within(costs, 4) is None  # exploring alone took 5


def test_accuracy_at_a_budget_is_the_mean_of_five_up_to_there() -> None:
    costs = [10, 20, 30, 40, 50, 60, 70]
    run = make_curve(RISING, costs)

    # rounds 1 to 5 are within 69; all 70 are within 79 and a round of 10 is not
    assert at_budget(run, costs, 69) == (pytest.approx(0.3), 1.0)
    assert at_budget(run, costs, 79) == (pytest.approx(0.4), 1.0)
    # at 100 there is room for more rounds, but the run ended
    assert at_budget(run, costs, 100) == (pytest.approx(0.4), pytest.approx(0.7))
    assert at_budget(run, costs, 9) is None


def test_a_window_with_a_missing_figure_has_no_mean() -> None:
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


def test_table_three_by_hand(two_seeds: Path) -> None:
    write_run(two_seeds, "autoflip-paper", RISING, 10, 200)
    table = accuracy_table(mnist(two_seeds))

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
    assert table["autoflip"]["rounds"].mean == pytest.approx(0.4)


def test_only_methods_with_all_seeds_can_be_best(two_seeds: Path) -> None:
    write_run(two_seeds, "random", [0.9] * 13, 4)
    table = accuracy_table(mnist(two_seeds))

    assert best_methods(table, "rounds", seeds=2) == {"fedavg"}
    assert best_methods(table, "bytes", seeds=2) == {"autoflip"}


def test_how_a_figure_is_written() -> None:
    two = Cell({0: 0.5, 1: 0.7}, {0: 0.3, 1: 0.32})

    assert show_accuracy(two, 2, True) == "**0.600 ±0.141** (at 31 %)"
    assert show_accuracy(Cell({0: 0.5}), 1, False) == "0.500"
    assert show_accuracy(Cell({1: 0.5}), 3, False) == "0.500 [1 of 3 seeds]"
    assert show_accuracy(Cell(), 3, False) == "-"


def test_table_five_by_hand(two_seeds: Path) -> None:
    table = cost_table(mnist(two_seeds))

    # AutoFLIP: .4 at round 6 (5 + 24 bytes); .42 at round 7 (.5, 5 + 28 bytes)
    row = table["autoflip"]
    assert row["target_rounds"].values == {0: 6, 1: 7}
    assert row["target_bytes"].values == {0: 29, 1: 33}
    assert row["target_macs"].values == {0: 290, 1: 330}
    assert row["bytes_saved"].mean == pytest.approx(1 - (29 + 33) / 2 / 60)
    assert table["fedavg"]["bytes_saved"].mean == 0
    assert cost_table(mnist(two_seeds, "autoflip")) == {}


def test_table_four_counts_networks_that_are_built(tmp_path: Path) -> None:
    from examples.paper.tasks import TASKS
    from flwr_autoflip.graph.plan import Plan
    from flwr_autoflip.graph.tracing.trace import trace

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
    assert (table["autoflip"]["parameters"], table["autoflip"]["macs"]) == (
        weights,
        macs,
    )
    assert table["autoflip"]["zeros"] == 7
    assert table["autoflip"]["thop_macs"] >= macs  # THOP counts pooling as well
    assert table["dense"]["macs"] > macs
    assert table["dense"]["time_ratio"] == 1
    assert table["autoflip"]["time_ratio"] > 0

    # A report that is made again keeps what was timed, for networks of the same sizes.
    table["autoflip"]["time_ratio"] = 77.0
    assert size_table(mnist(tmp_path), json.loads(json.dumps(table))) == table
    table["autoflip"]["macs"] += 1
    assert size_table(mnist(tmp_path), table)["autoflip"]["time_ratio"] < 77

    plan["parameters"] += 1
    other = write_run(tmp_path, "autoflip", TWICE, 4, seed=1, plan=plan)
    with pytest.raises(ValueError, match="the model has changed since"):
        size_table(mnist(other.parents[3]))


# --- Where AutoFLIP loses ---


def tables_of(**cells: dict[int, float]) -> dict:
    return {
        name: {
            column: Cell(dict(values) if column == "rounds" else {})
            for column in ("rounds", "macs", "bytes", "dense", "local")
        }
        for name, values in cells.items()
    }


def test_the_better_method_and_both_figures_are_named() -> None:
    tables = tables_of(
        autoflip={0: 0.5, 1: 0.7}, fedavg={0: 0.6, 1: 0.9}, guided={1: 0.69}
    )

    lines = where_autoflip_loses({"mnist": tables}, {"mnist": 1.25})

    assert lines == [
        "mnist, equal rounds: better are FedAvg, 0.750 against 0.600",
        "mnist, training step: takes 1.25 of the dense one's time, so its smaller "
        "network saves none",
    ]
    # Guided has one seed; AutoFLIP has .7 there
    better = tables_of(autoflip={0: 0.5, 1: 0.7}, guided={1: 0.71})
    [line] = where_autoflip_loses({"mnist": better}, {})
    assert line.endswith("AutoFLIP, guided, 0.710 against 0.700 on 1 of 2 seeds")


def test_random_units_within_a_standard_deviation_are_said() -> None:
    close = tables_of(autoflip={0: 0.5, 1: 0.7}, random={0: 0.55, 1: 0.6})
    clear = tables_of(autoflip={0: 0.6, 1: 0.61}, random={0: 0.3, 1: 0.31})

    # .600 against .575; the larger deviation is AutoFLIP's, .1 * sqrt(2)
    assert random_is_close(close, "rounds") == (
        pytest.approx(0.025),
        pytest.approx(0.1 * 2**0.5),
    )
    assert "within a standard deviation" in where_autoflip_loses({"t": close}, {})[0]
    assert where_autoflip_loses({"t": clear}, {}) == []
    alone = tables_of(autoflip={0: 0.6}, random={0: 0.59})
    assert "1 seed(s) of both" in where_autoflip_loses({"t": alone}, {})[0]


def test_never_reaching_fedavg_is_a_loss(tmp_path: Path) -> None:
    write_run(tmp_path, "fedavg", RISING, 10)
    write_run(tmp_path, "autoflip", [0.1] * 13, 4)
    methods = mnist(tmp_path)
    accuracy, cost = accuracy_table(methods), cost_table(methods)
    merged = {name: row | cost[name] for name, row in accuracy.items()}

    lines = where_autoflip_loses({"mnist": merged}, {})

    assert "mnist, FedAvg's accuracy: reached with 0 of 1 seed(s) only" in lines


# --- Figures ---


def test_series_by_hand(two_seeds: Path) -> None:
    assert over_seeds({0: [1, 2, np.nan], 3: [3, 6, 1, 9]}) == {
        "mean": [2, 4, None],
        "low": [1, 2, None],
        "high": [3, 6, None],
        "seeds": [0, 3],
    }
    methods = mnist(two_seeds)
    # twelve rounds were run; the figure ends with FedAvg's six
    assert variances(methods)["autoflip"]["mean"] == [1 / n for n in range(1, 7)]
    assert variances({"fedavg": methods["fedavg"]}) == {}
    write_run(two_seeds, "prunefl", TWICE, 4)
    panels = curves(mnist(two_seeds))
    assert {title: list(panel) for title, panel in panels.items()} == {
        "AutoFLIP, guided, random units": ["fedavg", "autoflip"],
        "PruneFL": ["fedavg", "autoflip", "prunefl"],
    }
    assert panels["PruneFL"]["prunefl"]["mean"][3:6] == [
        None,
        pytest.approx(0.2),
        pytest.approx(0.3),
    ]


def test_ablations_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path, "explore-0.5-2", RISING, 10, 20)
    plan = {"parameters": 30, "zeros": 10, "dense_parameters": 100, "units": {}}
    write_run(tmp_path, "threshold-0.3", RISING, 10, plan=plan)
    methods = mnist(tmp_path)

    [point] = exploration(methods)
    assert (point["fraction"], point["epochs"]) == (0.5, 2)
    assert point["top1"]["mean"] == pytest.approx(0.4)
    assert point["exploration_share_of_macs"] == pytest.approx(20 / 80)
    [point] = thresholds(methods)
    assert point["threshold"] == 0.3
    assert (point["parameters_kept"], point["nonzero_kept"]) == (0.4, 0.3)


def test_classes_are_counted_a_node() -> None:
    def node(*labels: int) -> TensorDataset:
        return TensorDataset(torch.zeros(len(labels), 1), torch.tensor(labels))

    nodes = (node(0, 0, 0, 2), node(1))
    federation = Federation(nodes, nodes, nodes[0], nodes[0])

    assert count_classes(federation, 3).tolist() == [[0.75, 0, 0.25], [0, 1, 0]]
