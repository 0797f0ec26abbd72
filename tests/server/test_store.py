"""Reports on disk: nothing is lost, nothing damaged counts, memory stays small."""

import errno
import gc
import logging
import os
import random
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from federation import EXAMPLE, Client, TinyNet, guided, initial
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid
from hypothesis import given, settings
from hypothesis import strategies as st
from models import layout_of, mlp_layout, random_arrays
from torch import nn

from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.graph import storage
from flwr_autoflip.graph.codec import layout_digest
from flwr_autoflip.ledger.ledger import node_rows
from flwr_autoflip.methods.guidance import (
    ClientScale,
    Normalization,
    Report,
    normalize,
)
from flwr_autoflip.methods.statistics import Running, SummedReports
from flwr_autoflip.server import report_file
from flwr_autoflip.server.store import ReportStore
from flwr_autoflip.wire.exploration import decode_report, encode_report

LAYOUT = mlp_layout()
NORMALIZATIONS: list[Normalization] = ["client", "layer"]
RUNNING: dict[str, Running] = {
    "client": Running(extremes=True, scaled=False),
    "layer": Running(extremes=False, scaled=False),
}


def reports_of(number: int, layout: Any = LAYOUT, seed: int = 0) -> list[Report]:
    """Make reports as they come out of the wire."""
    initial = random_arrays(layout, seed)
    reports = []
    for k in range(number):
        final = random_arrays(layout, seed + k + 1)
        sent = encode_report(initial, final, layout, "update")
        reports.append(decode_report(*sent, layout, "update", initial)[0])
    return reports


def filled(
    reports: Sequence[Report],
    folder: Path | None = None,
    running: Running | None = None,
) -> ReportStore:
    """Put reports of nodes 100, 101, ... on disk."""
    store = ReportStore(layout_digest(LAYOUT), folder, running)
    for k, report in enumerate(reports):
        assert store.add(100 + k, report)
    return store


def assert_same(one: Report, other: Report) -> None:
    """Bitwise, with the same names in the same order."""
    assert list(one) == list(other)
    for name, values in other.items():
        assert one[name].dtype == values.dtype
        np.testing.assert_array_equal(one[name], values, name)


# --- What is kept ---


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["update", "deviation", "units"]),
    st.sampled_from(["mlp", "conv_flat", "batch_norm"]),
    st.floats(-9, 9),
    st.integers(0, 99),
)
def test_16_bits_lose_nothing_that_came(
    payload: Any, name: str, exponent: float, seed: int
) -> None:
    layout = LAYOUT if name == "mlp" else layout_of(name)
    start = random_arrays(layout, seed)
    step = random_arrays(layout, seed + 1)
    final = {n: (a + 10**exponent * step[n]).astype(a.dtype) for n, a in start.items()}
    sent = encode_report(start, final, layout, payload)
    report, _ = decode_report(*sent, layout, payload, start)
    store = ReportStore(layout_digest(layout))

    assert store.add(7, report)

    assert_same(store[7], report)


def test_a_report_in_32_bits_is_kept_to_a_thousandth() -> None:
    report = {"w": np.geomspace(1e-6, 1e3, 50, dtype=np.float32).reshape(5, 10)}
    store = ReportStore(layout_digest(LAYOUT))

    store.add(7, report)

    np.testing.assert_allclose(store[7]["w"], report["w"], rtol=1e-3)
    assert store[7]["w"].any()


def test_a_file_takes_two_bytes_a_coordinate(tmp_path: Path) -> None:
    filled(reports_of(2), tmp_path)

    sizes = [path.stat().st_size for path in tmp_path.iterdir()]

    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "node-100.guidance",
        "node-101.guidance",
    ]
    values = sum(t.size for t in LAYOUT.tensors if t.trainable)
    assert all(2 * values < size < 2 * values + 1000 for size in sizes)


def test_a_store_without_folder_leaves_nothing_behind() -> None:
    store = filled(reports_of(1))
    folder = store.folder
    assert folder is not None
    assert folder.is_dir()

    del store
    gc.collect()

    assert not folder.exists()


# --- Plans of many ---


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("scale", ["raw", "tensor"])
@pytest.mark.parametrize("chunk", [3, 1 << 18])
def test_running_statistics_one_pass_and_memory_agree_to_the_bit(
    normalization: Normalization, scale: ClientScale, chunk: int
) -> None:
    reports = reports_of(5)
    kept = Running(extremes=normalization == "client", scaled=scale == "tensor")
    with patch("flwr_autoflip.methods.statistics.CHUNK", chunk):
        running = filled(reports, running=kept).everyone()
        passed = filled(reports).everyone()
        expected = normalize(reports, normalization, scale)

        assert isinstance(running, SummedReports)
        assert not isinstance(passed, SummedReports)
        assert_same(normalize(running, normalization, scale), expected)
        assert_same(normalize(passed, normalization, scale), expected)
    assert any(values.any() for values in expected.values())


def test_a_plan_of_all_reads_no_file() -> None:
    store = filled(reports_of(3), running=RUNNING["client"])
    with patch.object(report_file.StoredReport, "read", side_effect=AssertionError):
        for normalization in NORMALIZATIONS:
            normalize(store.everyone(), normalization)


def test_extremes_that_were_not_kept_are_read() -> None:
    reports = reports_of(3)
    store = filled(reports, running=RUNNING["layer"])

    guidance = normalize(store.everyone(), "client")

    assert_same(guidance, normalize(reports, "client"))


def test_sums_of_another_scale_are_not_taken() -> None:
    reports = reports_of(3)
    store = filled(reports, running=RUNNING["layer"])

    guidance = normalize(store.everyone(), "layer", "tensor")

    assert_same(guidance, normalize(reports, "layer", "tensor"))
    assert (guidance["fc1.weight"] != normalize(reports, "layer")["fc1.weight"]).any()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("trim", [0.2, 0.5])
def test_trimmed_means_read_single_reports(
    normalization: Normalization, trim: float
) -> None:
    reports = reports_of(5)
    kept = Running(extremes=True, scaled=True)
    store = filled(reports, running=kept)
    expected = normalize(reports, normalization, "tensor", trim)

    assert_same(normalize(store.everyone(), normalization, "tensor", trim), expected)
    with patch("flwr_autoflip.methods.statistics.STACK", 5 * 4):  # four at once
        found = normalize(store.everyone(), normalization, "tensor", trim)
    assert_same(found, expected)


def test_means_lie_in_the_files_heads(tmp_path: Path) -> None:
    report = {"fc1.weight": np.float32([9, 16, 0, 0]), "fc1.bias": np.float32([0])}
    store = filled([report], tmp_path)

    with patch.object(report_file.StoredReport, "read", side_effect=AssertionError):
        assert [store[100].mean(n) for n in report] == [6.25, 0.0]  # type: ignore[attr-defined]


def test_a_policy_of_ones_own_sees_single_reports() -> None:
    reports = reports_of(3)
    seen = filled(reports, running=RUNNING["layer"]).everyone()

    assert len(seen) == 3
    for one, other in zip(seen, reports, strict=True):
        assert_same(one, other)
    assert_same(seen[0:2][1], reports[1])


def test_a_node_that_explores_again_counts_once() -> None:
    reports = reports_of(3)
    store = filled(reports[:2], running=RUNNING["layer"])

    store.add(100, reports[2])

    expected = normalize([reports[2], reports[1]], "layer")
    assert_same(normalize(store.everyone(), "layer"), expected)


def test_statistics_that_were_released_are_not_kept_again() -> None:
    reports = reports_of(2)
    store = filled(reports, running=RUNNING["layer"])

    store.release()

    assert not isinstance(store.everyone(), SummedReports)
    assert_same(normalize(store.everyone()), normalize(reports))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("trim", [0.0, 0.2])
def test_memory_does_not_grow_with_reports(
    normalization: Normalization, trim: float
) -> None:
    size = 400_000
    rng = np.random.default_rng(0)

    def peak(number: int) -> float:
        store = ReportStore(layout_digest(LAYOUT))
        for node in range(number):
            store.add(node, {"w": rng.random(size, np.float32)})
        tracemalloc.start()
        try:
            with (
                patch("flwr_autoflip.methods.statistics.CHUNK", 1 << 14),
                patch("flwr_autoflip.methods.statistics.STACK", 1 << 15),
            ):
                normalize(store.everyone(), normalization, "tensor", trim)
            return tracemalloc.get_traced_memory()[1] / (4 * size)
        finally:
            tracemalloc.stop()

    few, many = peak(2), peak(12)

    assert many < few + 0.1
    assert 1 <= many < 5  # models of float32: guidance, sums, a few chunks


# --- Bad input ---


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)


def swap(path: Path) -> None:
    path.write_bytes(path.with_name("node-101.guidance").read_bytes())


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "truncated": cut,
    "empty": lambda path: path.write_bytes(b""),
    "a bit": flip,
    "another node's": swap,
    "foreign": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("restored", [False, True])
def test_a_damaged_file_is_named_and_its_node_unexplored(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    restored: bool,
) -> None:
    reports = reports_of(3)
    store = filled(reports, tmp_path)
    damage(tmp_path / "node-100.guidance")

    with caplog.at_level(logging.WARNING, "flwr"):
        if restored:
            state = store.state()
            store = ReportStore(layout_digest(LAYOUT), tmp_path)
            store.restore(state)
        seen = store.of([100, 101, 102])

    assert "node 100 counts as unexplored: " in caplog.text
    assert str(tmp_path / "node-100.guidance") in caplog.text
    assert len(caplog.records) == 1
    assert [list(store), 100 in store, 101 in store] == [[101, 102], False, True]
    for one, other in zip(seen, reports[1:], strict=True):
        assert_same(one, other)


def test_a_file_of_another_model_is_not_taken(tmp_path: Path) -> None:
    state = filled(reports_of(1), tmp_path).state()
    other = ReportStore(layout_digest(layout_of("conv_flat")), tmp_path)

    other.restore(state)

    assert len(other) == 0
    assert "not the file that was written" in other.fault


def test_a_short_file_is_seen_before_its_round(tmp_path: Path) -> None:
    store = filled(reports_of(2), tmp_path)
    assert 100 in store

    cut(tmp_path / "node-100.guidance")

    assert 100 not in store
    assert store.of([100, 101]) == [store[101]]


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reports = reports_of(3)
    store = filled(reports[:1], tmp_path, RUNNING["layer"])

    with patch.object(storage.os, "fsync", full):
        assert not store.add(101, reports[1])

    assert "node 101 counts as unexplored" in caplog.text
    assert "No space left on device" in store.fault
    assert str(tmp_path / "node-101.guidance") in store.fault
    assert [p.name for p in tmp_path.iterdir()] == ["node-100.guidance"]
    assert store.add(102, reports[2])
    expected = normalize([reports[0], reports[2]])
    assert_same(normalize(store.everyone()), expected)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = ReportStore(layout_digest(LAYOUT), tmp_path / "file")

    assert not store.add(100, reports_of(1)[0])

    assert str(tmp_path / "file") in store.fault
    with patch.object(os, "open", side_effect=OSError(errno.EROFS, "Read-only")):
        store = ReportStore(layout_digest(LAYOUT), tmp_path)
        assert not store.add(100, reports_of(1)[0])
    assert "Read-only" in store.fault
    assert list(store) == []


# --- In a run ---


def run(strategy: AutoFlip, rounds: int = 2, nodes: int = 4) -> Any:
    random.seed(0)
    grid = LocalGrid(client_app(Client), nodes)
    return strategy.start(grid, initial(), num_rounds=rounds)


def build_wide() -> AutoFlip:
    return AutoFlip(FedAvg(), Wide(), EXAMPLE, **guided(guidance_from="participants"))


def build(**options: Any) -> AutoFlip:
    return AutoFlip(FedAvg(), TinyNet(), EXAMPLE, **guided(**options))


def statuses(strategy: AutoFlip, phase: str, server_round: int) -> dict[int, str]:
    return {
        row["node"]: row["status"]
        for row in node_rows(strategy.ledger.rows)
        if (row["phase"], row["round"]) == (phase, server_round)
    }


def failing(nodes: Sequence[int], write: Any = report_file.write_whole) -> Any:
    def some(path: Path, *data: Any) -> None:
        if any(path.name == f"node-{node}.guidance" for node in nodes):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *data)

    return patch.object(report_file, "write_whole", some)


def test_a_disk_that_fills_up_while_nodes_explore(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = build()

    with failing([101]):
        run(strategy)

    assert set(strategy.reports) == {100, 102, 103}
    assert "node-101.guidance" in caplog.text
    assert statuses(strategy, "train", 2) == dict.fromkeys(range(100, 104), "ok")
    assert strategy.deployable_plan().num_parameters < strategy.layout.num_parameters


def test_no_report_can_be_written() -> None:
    strategy = build()

    with (
        failing(range(100, 104)),
        pytest.raises(ValueError, match=r"none of 4 explorers .*No space left.*node-1"),
    ):
        run(strategy)


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_participants_whose_file_is_damaged_explore_again(
    tmp_path: Path,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = build(guidance_from="participants", checkpoint_dir=tmp_path)
    aggregate = strategy.aggregate_train

    def then_damage(server_round: int, replies: Any) -> Any:
        result = aggregate(server_round, replies)
        if server_round == 1:
            damage(tmp_path / "guidance" / "node-102.guidance")
        return result

    with patch.object(strategy, "aggregate_train", then_damage):
        run(strategy, rounds=3)

    assert "node 102 counts as unexplored: " in caplog.text
    assert statuses(strategy, "explore", 2) == {102: "ok"}
    assert statuses(strategy, "train", 3) == dict.fromkeys(range(100, 104), "ok")


def test_no_guidance_is_left_in_a_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = build(guidance_from="participants", checkpoint_dir=tmp_path)
    aggregate = strategy.aggregate_train

    def then_lose(server_round: int, replies: Any) -> Any:
        for path in (tmp_path / "guidance").iterdir():
            path.unlink()
        return aggregate(server_round, replies)

    with patch.object(strategy, "aggregate_train", then_lose):
        writing = failing(range(100, 104))
        explore = strategy._explorer.first

        def explore_then_fail(*args: Any) -> Any:
            result = explore(*args)
            writing.start()
            return result

        try:
            with patch.object(strategy._explorer, "first", explore_then_fail):
                run(strategy, rounds=2)
        finally:
            writing.stop()

    assert "no node's guidance is left: the dense model stays" in caplog.text
    assert statuses(strategy, "train", 2) == dict.fromkeys(range(100, 104), "ok")


class Wide(nn.Sequential):
    """A model that outweighs everything else a round holds."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(64, 3000), nn.ReLU(), nn.Linear(3000, 3)
        )


class WideClient(Client):
    """Trains it."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.model_fn = Wide


def test_memory_of_late_explorers_is_three_models_above_what_came() -> None:
    def peak(number: int) -> float:
        strategy = build_wide()
        grid = LocalGrid(client_app(WideClient), number)
        arrays = ArrayRecord(Wide().state_dict())
        templates = strategy.strategy.configure_train(1, arrays, ConfigRecord(), grid)
        replies = strategy._exchange.replies

        def traced(*args: Any) -> Any:
            tracemalloc.start()  # all answers are here
            return replies(*args)

        try:
            with (
                patch.object(strategy._exchange, "replies", traced),
                patch("flwr_autoflip.methods.statistics.CHUNK", 1 << 12),
            ):
                strategy._explorer.visit(1, grid, list(templates), arrays)
            assert len(strategy.reports) == number
            return tracemalloc.get_traced_memory()[1] / strategy.layout.num_parameters
        finally:
            tracemalloc.stop()

    few, many = peak(3), peak(9)
    # Bytes a parameter. FedAvg holds 4 more for every node; here are 2, what came.
    assert (many - few) / 6 < 2.1
    assert few - 3 * 2 < 3 * 4  # three dense models
