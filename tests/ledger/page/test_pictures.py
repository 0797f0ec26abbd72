"""PNGs, with matplotlib and without."""

import sys
from pathlib import Path

import numpy as np
import pytest
from ledgers import make_ledger

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.ledger.page.curves import curve
from flwr_autoflip.ledger.page.pictures import draw_all, draw_curves
from flwr_autoflip.ledger.page.runs import Run


def runs() -> list[Run]:
    new, old = make_ledger(None, 7, 3), make_ledger(None, 6, 3, old=True)
    return [Run("new", new.rows), Run("old", old.rows)]


def pixels(path: Path) -> np.ndarray:
    matplotlib = pytest.importorskip("matplotlib.image")
    return np.asarray(matplotlib.imread(path))


def test_every_chart_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    written = draw_all(runs(), tmp_path / "x" / "run.1")

    kinds = ("curves", "units", "guidance", "nodes")
    assert [p.name for p in written] == [f"run.1-{kind}.png" for kind in kinds]
    assert all(np.ptp(pixels(path)) > 0.9 for path in written)  # not a blank sheet


def test_what_ledgers_lack_is_not_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row for row in make_ledger(None, 3, 2).rows if row["phase"] == "train"]

    written = draw_all([Run("bare", rows)], tmp_path / "bare")

    assert [path.name for path in written] == ["bare-nodes.png"]


def test_curves_of_several_seeds(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = [curve(make_ledger(None, n, 2).rows) for n in (8, 9)]

    draw_curves({"a": lines, "b": lines[:1]}, tmp_path / "x" / "r.png", target=0.5)

    assert np.ptp(pixels(tmp_path / "x" / "r.png")) > 0.9


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(AutoFlipError, match=r"flwr-autoflip\[plots\]"):
        draw_all(runs(), tmp_path / "x")

    assert not list(tmp_path.iterdir())
