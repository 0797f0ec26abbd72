"""Every run's ledger begins with what it was made with, and the page says it."""

from html import escape
from pathlib import Path
from typing import Any

import flwr
import pytest
from federation import EXAMPLE, Client, TinyNet, initial
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid
from ledgers import make_ledger

import flwr_autoflip
from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.ledger.ledger import read_ledger
from flwr_autoflip.ledger.page.page import render_page
from flwr_autoflip.ledger.page.runs import Run, read_runs


def run(rounds: int, **options: Any) -> None:
    strategy = AutoFlip(FedAvg(fraction_evaluate=0.0), TinyNet(), EXAMPLE, **options)
    strategy.start(LocalGrid(client_app(Client), 3), initial(), num_rounds=rounds)


@pytest.mark.parametrize("policy", ["l1", "autoflip"])
def test_the_first_row_says_what_made_the_run(tmp_path: Path, policy: str) -> None:
    run(1, ledger_dir=tmp_path, policy=policy)

    first, *others = read_ledger(tmp_path / "ledger.jsonl")

    assert (first["phase"], first["round"]) == ("run", 0)
    assert first["version"] == flwr_autoflip.__version__
    assert first["flwr"] == flwr.__version__
    assert {"commit", "torch", "numpy", "python", "cores", "date"} <= set(first)
    assert "run" not in {row["phase"] for row in others}


def test_a_run_that_goes_on_says_what_it_goes_on_with(tmp_path: Path) -> None:
    run(1, checkpoint_dir=tmp_path)
    run(3, checkpoint_dir=tmp_path)

    rows = read_ledger(tmp_path / "ledger.jsonl")

    starts = [(row["phase"], row["round"]) for row in rows if row["phase"] == "run"]
    assert starts == [("run", 0), ("run", 1)]
    assert rows[0]["phase"] == "run"


def test_a_refused_reply_has_its_reason_beside_it(tmp_path: Path) -> None:
    strategy = AutoFlip(FedAvg(), TinyNet(), EXAMPLE, ledger_dir=tmp_path)

    def spoil(node: int, reply: Message) -> Message | None:
        if node == 101:
            for record in reply.content.array_records.values():
                record.clear()
        return reply

    grid = LocalGrid(client_app(Client), 3, spoil)
    strategy.start(grid, initial(), num_rounds=1)

    rows = read_ledger(tmp_path / "ledger.jsonl")
    reasons = {row["node"]: row["reason"] for row in rows if row["phase"] == "train"}
    assert reasons[101]
    assert not reasons[100]


def test_the_page_says_it_in_a_line(tmp_path: Path) -> None:
    run(1, ledger_dir=tmp_path / "one")

    (read,) = read_runs([tmp_path / "one"])
    page = render_page([read])

    row = read.of_phase("run")[0]
    assert f"flwr-autoflip {row['version']}, " in page
    assert f"torch {row['torch']}" in page
    assert escape(row["date"]) in page


def test_a_foreign_row_is_escaped_and_an_old_ledger_says_nothing() -> None:
    rows = list(make_ledger(None, 2, 2).rows)
    odd = {"phase": "run", "round": 0, "version": "<script>", "commit": ["<i>"] * 99}

    assert "no word of what made it" in render_page([Run("old", rows)])
    page = render_page([Run("odd", [odd, *rows])])
    assert "<i>" not in page
    assert "flwr-autoflip &lt;script&gt;" in page
