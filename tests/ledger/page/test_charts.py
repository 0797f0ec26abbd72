"""Charts: what is drawn where, in whose colours, and that it is nothing but drawn."""

import base64
import re
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from ledgers import HOSTILE, make_ledger

from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.ledger.page.charts import (
    COLOURS,
    CSS,
    Line,
    bar_chart,
    line_chart,
    plotting,
    strip,
    svg,
)
from flwr_autoflip.ledger.page.page import render_page, write_pngs
from flwr_autoflip.ledger.page.runs import Run

X = np.arange(5.0)


@pytest.fixture
def drawing() -> Iterator[None]:
    pytest.importorskip("matplotlib")
    with plotting():
        yield


def paths(drawn: str, colour: str) -> list[list[list[float]]]:
    """Points of the paths of a colour, by path."""
    found = re.findall(rf'<path d="([^"]*)" style="[^"]*var\(--{colour}\)', drawn)
    pairs = [re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path) for path in found]
    return [[[float(x), float(y)] for x, y in path] for path in pairs]


@pytest.mark.usefixtures("drawing")
def test_lines_by_hand() -> None:
    line = Line("a", 0, X, np.array([0.0, np.nan, 0.5, np.inf, 1.0]), mark=2.0)

    drawn = svg(line_chart("By bytes", [line], "bytes", "B"))

    # 56 to 288 across; 166 to 12 up, of which 5 % lie above the highest value
    top = 166 - 154 / 1.05
    alone = [[[56, 166]], [[172, (166 + top) / 2]], [[288, top]]]
    assert sum(map(len, paths(drawn, "s0"))) == 3
    np.testing.assert_allclose(
        [point for path in paths(drawn, "s0") for point in path],
        [point for path in alone for point in path],
        atol=0.02,
    )
    ((left, _), (right, _), *_) = paths(drawn, "shade")[0]
    assert {left, right} == {56, 172}
    assert " exploring " in drawn
    assert not re.search("font-family|font:", drawn)
    assert 'aria-label="By bytes: a"' in drawn
    assert ">0 B<" in drawn


@pytest.mark.usefixtures("drawing")
def test_runs_have_colours_dashes_and_marks() -> None:
    lines = [Line(f"run {n}", n, X + 1, X, mark=1.5) for n in range(8)]
    lines.append(Line("dense", 0, X, X, "reference"))

    drawn = svg(line_chart("Costs", lines, "bytes", "B", log=True))

    assert [len(paths(drawn, f"s{n}")) for n in range(6)] == [5, 4, 2, 2, 2, 2]
    assert drawn.count("stroke-dasharray") == 2 + 1
    assert "var(--shade)" not in drawn


@pytest.mark.usefixtures("drawing")
def test_a_single_value_is_a_dot() -> None:
    drawn = svg(line_chart("One", [Line("a", 1, X[:1], X[:1])], "round"))

    assert "stroke-width: 6" in drawn
    assert paths(drawn, "s1")


@pytest.mark.usefixtures("drawing")
def test_bars_by_hand() -> None:
    drawn = svg(bar_chart("Bytes", {"s0": [4.0, 1.0], "s2": [4.0, 0.0]}, "B", 8.0))

    # 8 is 116 high, from 128 up
    (low,), (high,) = paths(drawn, "s0"), paths(drawn, "s2")
    assert {y for _, y in low} == {128, 70, 128 - 116 / 8}
    assert {y for _, y in high} == {70, 12, 128 - 116 / 8}
    assert "2 nodes, most first" in drawn


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize("value", [1e100, -1e100, 1e-320, 0.0, np.nan])
def test_any_value_is_drawn_as_plain_paths_and_texts(value: float) -> None:
    lines = [Line(HOSTILE, 0, X * abs(value), X * value)]

    drawn = svg(line_chart(HOSTILE, lines, "bytes", "B"))

    root = ElementTree.fromstring(drawn)
    assert {element.tag for element in root.iter()} <= {"svg", "path", "text"}
    kinds = {name for element in root.iter() for name in element.attrib}
    assert kinds <= {"class", "viewBox", "role", "aria-label", "d", "style", "x", "y"}
    assert "</script>" not in drawn
    assert not re.search("#|font-family|nan|inf", drawn)
    assert set(re.findall(r"var\(--(\w+)\)", drawn)) <= set(COLOURS)


def test_every_colour_has_a_dark_one() -> None:
    names = re.findall(r"--(\w+): #", CSS.partition("@media")[2])

    assert set(COLOURS) - set(names) == {"kept", "pruned"}  # these suit both
    assert len(set(COLOURS.values())) == len(COLOURS)


@pytest.mark.usefixtures("drawing")
def test_a_strip_has_a_pixel_a_value() -> None:
    image = pytest.importorskip("matplotlib.image")
    values = {"kept": np.array([0.0, 0.5, 1.0]), "pruned": np.array([1.0, 0.0, 2.0])}

    drawn = strip(values, "a <b>")

    data = base64.b64decode(re.findall(r'base64,([^"]*)"', drawn)[0])
    pixels = image.imread(BytesIO(data), format="png")
    np.testing.assert_allclose(
        pixels[..., 3], [[0.08, 0.54, 1], [1, 0.08, 1]], atol=1 / 255
    )
    kept, pruned = (bytes.fromhex(COLOURS[name][1:]) for name in values)
    np.testing.assert_allclose(255 * pixels[:, 1, :3], [[*kept], [*pruned]], atol=0.5)
    assert 'alt="a &lt;b&gt;"' in drawn


# --- PNGs ---


def runs() -> list[Run]:
    new, old = make_ledger(None, 7, 3), make_ledger(None, 6, 3, old=True)
    return [Run("new", new.rows), Run("old", old.rows)]


def test_every_chart_is_drawn(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")

    written = write_pngs(runs(), tmp_path / "run.1")

    kinds = ("curves", "units", "importance", "nodes")
    assert [p.name for p in written] == [f"run.1-{kind}.png" for kind in kinds]
    assert all(np.ptp(image.imread(path)) > 0.7 for path in written)  # not blank


def test_what_ledgers_lack_is_not_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row for row in make_ledger(None, 3, 2).rows if row["phase"] == "train"]

    written = write_pngs([Run("bare", rows)], tmp_path / "bare")

    assert [path.name for path in written] == ["bare-nodes.png"]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(AutoFlipError, match=r"flwr-autoflip\[plots\]"):
        render_page(runs())
