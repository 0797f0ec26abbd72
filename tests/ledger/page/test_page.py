"""The page as text: whole, escaped, small, and made quickly."""

import re
import time
from pathlib import Path

import pytest
from ledgers import make_ledger, write_large

from flwr_autoflip.ledger.page.page import render_page
from flwr_autoflip.ledger.page.runs import Run, read_runs
from fuzz.pages import check_page

pytest.importorskip("matplotlib")

ADDRESS = re.compile(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|https?:""")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    new, old = make_ledger(None, 12, 3, faults=True), make_ledger(None, 7, 3, old=True)
    bare = [row for row in new.rows if row["phase"] == "explore"]
    one, two = Run("a<i>", new.rows), Run("b", old.rows)
    far = Run("far", make_ledger(None, 12, 40, ratio=1.0).rows)
    return {
        "one": render_page([one]),
        "old": render_page([two]),
        "bare": render_page([Run("bare", bare)]),
        "several": render_page([one, two, far]),
        "many": render_page([Run(f"run {n}", new.rows) for n in range(8)]),
    }


@pytest.mark.parametrize("name", ["one", "old", "bare", "several", "many"])
def test_a_page_is_whole_and_fetches_nothing(pages: dict[str, str], name: str) -> None:
    page = pages[name]

    check_page(page)
    assert not ADDRESS.search(page)
    assert "nan" not in re.findall(r'[\s"]nan[\s"]', page)
    assert "<b>out" not in page
    assert "<i>" not in page


def test_sections_say_what_is_not_known(pages: dict[str, str]) -> None:
    assert "No ledger here holds units&#x27; importance" in pages["old"]
    assert "does not say how many units" in pages["old"]
    assert "give AutoFlip&#x27;s start() an evaluate_fn" in pages["bare"]
    assert "hold no plan" in pages["bare"]
    assert "&lt;b&gt;out&lt;/b&gt; of memory" in pages["one"]


def test_exploring_is_marked(pages: dict[str, str]) -> None:
    assert pages["one"].count(" exploring </text>") == 2  # bytes and MACs
    assert " exploring </text>" not in pages["several"]
    rows = [
        {**row, "round": 1} if row["phase"] == "explore" else row  # within round 1
        for row in make_ledger(None, 3, 2).rows
    ]
    assert render_page([Run("a", rows)]).count(" exploring </text>") == 2


def test_what_is_drawn_has_a_name(pages: dict[str, str]) -> None:
    page = pages["one"]

    assert page.count("<svg ") == page.count('role="img" aria-label="') == 5 + 2
    assert page.count("<img ") == page.count(' alt="') == 3 + 3
    assert 'alt="conv1: 25 % to 25 % of units kept"' in page


@pytest.mark.slow
def test_200_rounds_of_100_nodes(tmp_path: Path) -> None:
    """The page's promise: at most 5 seconds and 1 MB, also with a plan every round."""
    path = write_large(tmp_path, 200, 100, 80)
    start = time.process_time()

    page = render_page(read_runs([path]))

    seconds = time.process_time() - start
    print(f"\n200 rounds x 100 nodes: {seconds:.2f} s, {len(page) / 1e6:.2f} MB")
    assert path.read_text().count("\n") > 20_000
    assert seconds < 5
    assert len(page.encode()) < 1e6
