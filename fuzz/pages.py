"""Targets that read ledgers and show them: whole rows, and pages without a stranger's.

A real ledger is changed as the fuzzer says, row by row or byte by byte. The oracle of a
page: every element is one of ours, closed in its turn, and no text can do anything.
"""

import json
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files as resources
from math import isnan
from typing import Any

from flwr_autoflip.cli.tensorboard import scalars
from flwr_autoflip.errors import AutoFlipError
from flwr_autoflip.ledger.cost import CostOf
from flwr_autoflip.ledger.histogram import unit_histograms
from flwr_autoflip.ledger.ledger import Ledger, dense_bytes, node_rows, total
from flwr_autoflip.ledger.page.page import render_page
from flwr_autoflip.ledger.page.runs import Run, read_runs, summarise
from flwr_autoflip.ledger.rows import NodeRow, Rows, parse_rows

from .draw import Draw, change_bytes, change_json
from .files import HERE
from .harness import target
from .model import DENSE, EXAMPLE, LAYOUT, MODEL, SMALL

PAGE_ROUNDS = 300
"""Ledgers with later rounds are read, but not drawn: they take long, not wrong ways."""
COLUMNS = ("bytes_down", "bytes_up", "macs", "examples", "eval_examples")


@cache
def real_lines() -> list[str]:
    """Give the lines of a whole ledger: three rounds, and a node that fails."""
    path = HERE / "whole.jsonl"
    book, cost_of = Ledger(path), CostOf(MODEL, EXAMPLE)
    cost: dict[str, Any] = {"bytes_down": 900, "bytes_up": 800, "examples": 9}
    book.add(NodeRow(0, "explore", 7, **cost, seconds=0.5))
    row: dict[str, Any] = {"digest": "00", "plan": cost_of.shape(SMALL)}
    row["dense_units"] = {group.name: group.size for group in LAYOUT.groups}
    row["dense_message"] = {"down": 3000, "up": 3100, "metrics": 90}
    scores = {group.name: [0.5] * group.size for group in LAYOUT.groups}
    book.add_plan(0, {**row, "importance": unit_histograms(SMALL, scores)})
    for number in range(1, 4):
        for node in (7, 8):
            book.add(NodeRow(number, "train", node, **cost, seconds=0.25))
            book.add(NodeRow(number, "evaluate", node, eval_examples=3))
        book.add(NodeRow(number, "train", 9, status="failed", reason="no <b>memory"))
        metrics = {"loss": 1.5, "top1": 0.2 * number, "dense-top1": 0.25 * number}
        book.add_server(number, metrics, cost_of.shape(SMALL))
    book.add_plan(3, {**row, "plan": cost_of.shape(DENSE), "digest": "01"})
    return path.read_text().splitlines(keepends=True)


CHANGES = ((1, 3, 5, 1, 3, 2), (3, 7, 1, 9, 30, 4), (9, 1, 1, 4, 12, 8))
SEEDS = [
    *(b"\0\0", b"\xff" + "".join(real_lines()).encode()),
    *(b"\xff" + line.encode() for line in real_lines()),
    *(bytes([0, 1, place, *change]) for place in range(4) for change in CHANGES),
]


def changed_ledger(data: bytes) -> bytes:
    """Change some rows of a real ledger, or bytes of it, or give any bytes."""
    draw = Draw(data)
    kind = draw.number()
    if kind == 255:
        return draw.rest()
    lines = list(real_lines())
    for _ in range(draw.number() % 4):
        place = draw.number() % len(lines)
        row = change_json(draw, json.loads(lines[place]))
        lines[place] = json.dumps(row) + "\n"
    content = "".join(lines).encode()
    for _ in range(draw.number() % 3 if kind % 2 else 0):
        content = change_bytes(draw, content)
    return content


@target(SEEDS, 8192)
def ledger_rows(data: bytes) -> Iterator[bool]:
    """Read rows: each can be stored again, added up, and shown by TensorBoard."""
    content = changed_ledger(data)
    rows, unreadable = parse_rows(content)
    yield bool(rows) and not unreadable
    assert 0 <= len(rows) + unreadable <= len(content.splitlines())
    assert repr(list(Rows(rows))) == repr(rows)
    for column in COLUMNS:
        own = [row for row in node_rows(rows) if column in row]
        assert 0 <= total(own, column) < 2**160
    messages = [r.get("dense_message") for r in rows if r["phase"] == "plan"]
    for message in filter(None, messages):
        assert all(dense_bytes(row, message) >= 0 for row in node_rows(rows))
    for (tag, step), value in scalars(rows).items():
        assert tag.isprintable()
        assert len(tag) < 200
        assert step >= 0
        assert float(value) >= 0 or tag.startswith("server/") or isnan(value)


@target(SEEDS, 8192)
def page(data: bytes) -> Iterator[bool]:
    """Draw the page of a ledger, alone and beside a whole one."""
    path = HERE / "run.jsonl"
    path.write_bytes(changed_ledger(data))
    (run,) = read_runs([path])
    if run.rounds > PAGE_ROUNDS:
        raise AutoFlipError("takes long")
    yield not run.unreadable
    whole = Run("whole", parse_rows("".join(real_lines()).encode())[0])
    for shown in ([run], [run, whole]):
        check_page(render_page(shown))
    json.dumps(summarise(run), allow_nan=False)


ELEMENTS = (
    "body br button dd details div dl dt footer h1 h2 h3 head html i img li link main "
    "meta p path script section span style summary svg table tbody td text th thead "
    "title tr ul"
)
ATTRIBUTES = (
    "alt aria-label charset class content d data-value href lang name open rel role "
    "scope src style type viewbox x y"
)
VOID = {"meta", "link", "br", "img"}


class _Page(HTMLParser):
    """Asserts that a page holds what ours do, and closes every element in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Assert that an element and its attributes are ours, and fetch nothing."""
        assert tag in ELEMENTS.split()
        for name, value in attrs:
            assert name in ATTRIBUTES.split()
            assert name not in ("href", "src") or str(value).startswith("data:")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Assert that it was opened last."""
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        """Assert that there is none."""
        raise AssertionError(data)

    def handle_data(self, data: str) -> None:
        """Assert that a text is the page's own, or shows nothing but itself."""
        if self.open and self.open[-1] in ("script", "style"):
            assert data in map(_resource, ("page.js", "page.css"))
        else:
            assert data.replace("\n", "").isprintable()


@cache
def _resource(name: str) -> str:
    return resources("flwr_autoflip.ledger.page").joinpath(name).read_text("utf-8")


def check_page(page: str) -> None:
    """Assert that a page is whole and that nothing in it is a stranger's."""
    page.encode()
    parser = _Page()
    parser.feed(page)
    parser.close()
    assert not parser.open
