"""Reports on disk: nothing is lost, nothing damaged counts, memory stays small."""

import errno
import gc
import os
import stat
import tracemalloc
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from flwr_autoflip.errors import AutoFlipError, DamagedFileError
from flwr_autoflip.server.persistence.deviations import find_report, store_report

REPORT = {
    "fc2.weight": np.float32([[1e-30, 0.1], [3e30, 0]]),
    "conv.bias": np.zeros(0, np.float32),
    "a": np.float32(7).reshape(()),
}


def test_a_report_comes_back_to_the_bit_and_in_order(tmp_path: Path) -> None:
    stored = store_report(tmp_path / "made" / "reports", 7, REPORT)

    found = find_report(stored.path.parent, stored.path.name, stored.checksum)

    assert found is not None
    for each in (stored, found):
        assert list(each) == list(REPORT)
        assert len(each) == 3
        for name, values in REPORT.items():
            assert each[name].dtype == np.float32
            np.testing.assert_array_equal(each[name], values, strict=True)
    assert "b" not in stored
    assert stat.S_IMODE(stored.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(stored.path.parent.stat().st_mode) == 0o700


def test_a_tensor_is_read_when_it_is_asked_for() -> None:
    size = 100_000
    report = {f"{i}": np.full(size, i, np.float32) for i in range(20)}
    stored = store_report(None, 1, report)
    tracemalloc.start()
    try:
        total = sum(float(values.mean()) for values in stored.values())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert total == sum(range(20))
    assert peak < 4 * (4 * size)


def test_a_report_without_a_folder_leaves_nothing_behind() -> None:
    stored = store_report(None, 1, REPORT)
    folder = stored.path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    del stored
    gc.collect()

    assert not folder.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def swap(path: Path) -> None:
    other = store_report(path.parent, 8, {"a": np.float32([1])})
    other.path.replace(path)


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, cut, swap],
    ids=["missing", "cut", "another node's"],
)
def test_a_damaged_file_is_named_and_its_node_unexplored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    stored = store_report(tmp_path, 7, REPORT)
    assert callable(damage)
    damage(stored.path)

    assert find_report(tmp_path, stored.path.name, stored.checksum) is None

    (record,) = caplog.records
    assert "node 7 counts as unexplored: " in record.getMessage()
    assert str(stored.path) in record.getMessage()


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "", "node-7.x\x1b[2J"])
def test_a_name_in_a_checkpoint_is_no_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    assert find_report(tmp_path, name, "") is None

    assert "is no name of a report" in caplog.text
    assert "\x1b" not in caplog.text


def test_a_file_that_goes_while_it_is_wanted_is_named(tmp_path: Path) -> None:
    stored = store_report(tmp_path, 7, REPORT)
    stored.path.unlink()

    with pytest.raises(DamagedFileError, match=r"node-7.safetensors cannot be read"):
        stored["a"]


@pytest.mark.parametrize("own", [True, False])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, own: bool) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        patch("tempfile.tempdir", str(tmp_path)),
        patch.object(os, "fsync", side_effect=full),
        pytest.raises(AutoFlipError, match=rf"kept in {tmp_path}.*No space left"),
    ):
        store_report(tmp_path if own else None, 7, REPORT)

    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(AutoFlipError, match=rf"{tmp_path}/file: "):
        store_report(tmp_path / "file", 7, REPORT)
