"""The page as text: whole, escaped, small, and made quickly."""

import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ledgers import make_ledger, write_large

from flwr_autoflip.ledger.page.page import render_page
from flwr_autoflip.ledger.page.runs import Run, read_runs

VOID = {"meta", "link", "br", "img"}
ADDRESS = re.compile(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|https?:""")


class Nesting(HTMLParser):
    """Checks that every element is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pages() -> dict[str, str]:
    new, old = make_ledger(None, 12, 3, faults=True), make_ledger(None, 7, 3, old=True)
    bare = [row for row in new.rows if row["phase"] == "explore"]
    one, two = Run("a<i>", new.rows), Run("b", old.rows)
    far = Run("far", make_ledger(None, 12, 40, share=1.0).rows)
    return {
        "one": render_page([one]),
        "old": render_page([two]),
        "bare": render_page([Run("bare", bare)]),
        "several": render_page([one, two, far]),
        "many": render_page([Run(f"run {n}", new.rows) for n in range(8)]),
    }


@pytest.mark.parametrize("name", list(pages()))
def test_a_page_is_whole_and_fetches_nothing(name: str) -> None:
    page = pages()[name]

    checker = Nesting()
    checker.feed(page)
    assert checker.open == []
    assert not ADDRESS.search(page)
    assert "nan" not in re.findall(r'[\s"]nan[\s"]', page)
    assert "<b>out" not in page
    assert "<i>" not in page


def test_sections_say_what_is_not_known() -> None:
    found = pages()

    assert "holds guidance" in found["old"]
    assert "does not say how many units" in found["old"]
    assert "give AutoFlip&#x27;s start() an evaluate_fn" in found["bare"]
    assert "hold no plan" in found["bare"]
    assert "&lt;b&gt;out&lt;/b&gt; of memory" in found["one"]


def test_exploring_is_marked() -> None:
    found = pages()

    assert found["one"].count('class="explored"') == 2  # bytes and MACs
    assert 'class="explored"' not in found["several"]
    assert found["several"].count(": exploring took") == 2 * 3


@pytest.mark.slow
def test_200_rounds_of_100_nodes(tmp_path: Path) -> None:
    """The page's promise: at most 5 seconds and 3 MB, also with a plan every round."""
    path = write_large(tmp_path, 200, 100, 80)
    start = time.process_time()

    page = render_page(read_runs([path]))

    seconds = time.process_time() - start
    print(f"\n200 rounds x 100 nodes: {seconds:.2f} s, {len(page) / 1e6:.2f} MB")
    assert path.read_text().count("\n") > 20_000
    assert seconds < 5
    assert len(page.encode()) < 3e6
