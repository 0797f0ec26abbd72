"""Ledgers that were damaged, or that somebody else wrote: shown as far as they go."""

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federation import EXAMPLE, Client, initial, make_model
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg
from ledgers import make_ledger, write_hostile, write_rows
from typer.testing import CliRunner, Result

from examples.inprocess import InProcessGrid
from flwr_autoflip import AutoFlip, client_app
from flwr_autoflip.cli.main import app
from flwr_autoflip.cli.tensorboard import scalars
from flwr_autoflip.errors import AutoFlipError, AutoFlipWarning
from flwr_autoflip.ledger.ledger import read_ledger, total
from flwr_autoflip.ledger.page.overview import lead
from flwr_autoflip.ledger.page.page import render_page
from flwr_autoflip.ledger.page.runs import Run, read_runs, summarise
from flwr_autoflip.ledger.rows import NodeRow, is_row
from fuzz.draw import Draw, change_json
from fuzz.pages import check_page

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The lines of a run's ledger: exploring, plans, three rounds, evaluations."""
    folder = tmp_path_factory.mktemp("run")

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"top1": 0.3 * server_round, "each": [0.1, 0.2]})

    inner = FedAvg(min_available_nodes=4)
    strategy = AutoFlip(inner, make_model(), EXAMPLE, method="paper", ledger_dir=folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tiny models prune little, and say so
        grid = InProcessGrid(client_app(Client), 4)
        strategy.start(grid, initial(), num_rounds=3, evaluate_fn=evaluate)
    return (folder / "ledger.jsonl").read_text().splitlines(keepends=True)


def with_values(chance: random.Random, lines: list[str]) -> bytes:
    """Replace, drop, swap or rename values of one to three rows."""
    lines = list(lines)
    for _ in range(chance.randrange(1, 4)):
        place = chance.randrange(len(lines))
        row = change_json(Draw(chance.randbytes(40)), json.loads(lines[place]))
        lines[place] = json.dumps(row) + "\n"
    return "".join(lines).encode()


def with_bits(chance: random.Random, lines: list[str]) -> bytes:
    """Flip bits."""
    content = bytearray("".join(lines).encode())
    for _ in range(chance.randrange(1, 20)):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("change", [with_values, with_bits])
def test_a_damaged_ledger_is_shown_or_refused_and_nothing_else(
    tmp_path: Path, real: list[str], change: Callable[..., bytes]
) -> None:
    assert all(is_row(json.loads(line)) for line in real)
    chance, path = random.Random(change.__name__), tmp_path / "ledger.jsonl"
    shown = 0
    for _ in range(30):
        path.write_bytes(change(chance, real))
        try:
            (run,) = read_runs([path])
            check_page(render_page([run]))
        except AutoFlipError:
            continue
        json.dumps(summarise(run), allow_nan=False)
        assert all(tag.isprintable() for tag, _ in scalars(run.rows))
        shown += 1
    assert shown > 15


# --- What is left out is said ---


def damaged(folder: Path, *lines: Any) -> Path:
    """A whole run's ledger with other lines in its middle."""
    make_ledger(folder, 6, 3)
    path = folder / "ledger.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    others = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join([*rows[:9], *(f"{o}\n" for o in others), *rows[9:]]))
    return path


def row(**values: Any) -> dict[str, Any]:
    whole = NodeRow(1, "train", 7, bytes_down=5, bytes_up=3)
    return {**vars(whole), "macs": 0, **values}


PLAN = {"round": 1, "phase": "plan", "digest": "00", "plan": {}, "dense_units": {}}
SERVER = {"round": 1, "phase": "server", "metrics": {}, "plan": {}}
NO_ROWS = [
    *("junk", "5", "[]", "null", "[" * 10**5, row(round=-1), row(round=2**62)),
    *(row(round=1.0), row(round=True), row(phase=["train"]), row(phase=None)),
    *(row(node=None), row(node="7"), row(node=-7), row(node=10**30), row(reason=None)),
    *(row(status=[]), row(bytes_up=None), row(bytes_up=-1), row(bytes_down=2**200)),
    *(row(bytes_down=float("nan")), row(macs=-1), row(macs="9"), row(examples=1.5)),
    *(row(seconds=float("nan")), row(seconds=float("inf")), row(seconds=[])),
    *({"round": 1, "phase": "train"}, {"round": 1, "phase": "server"}),
    *(SERVER | {"metrics": []}, SERVER | {"plan": {"units": {"a": "b"}}}),
    *(SERVER | {"plan": {"macs": -1}}, PLAN | {"plan": None}, PLAN | {"digest": 0}),
    *(PLAN | {"dense_units": []}, PLAN | {"dense_message": {"down": 1}}),
    *(PLAN | {"importance": {"g": {"top": 1, "kept": [1], "pruned": []}}},),
]


@pytest.mark.parametrize("line", NO_ROWS, ids=lambda line: str(line)[:70])
def test_a_line_that_is_no_row_is_left_out_and_counted(
    tmp_path: Path, line: Any
) -> None:
    path = damaged(tmp_path, line)

    with pytest.warns(AutoFlipWarning, match="1 lines are no whole rows"):
        rows = read_ledger(path)

    assert len(rows) == 2 + 1 + 18 + 7
    (run,) = read_runs([path])
    assert run.unreadable == summarise(run)["unreadable_rows"] == 1
    assert "1 lines of the ledger could not be read" in lead([run])
    assert "2 lines of the ledger could not be read" in lead([run, run])


def test_foreign_keys_and_phases_are_passed_over(tmp_path: Path) -> None:
    later = {"round": 1, "phase": "later", "x": []}

    (run,) = read_runs([damaged(tmp_path, row(more=[{"deep": None}]), later)])

    assert is_row(PLAN)
    assert is_row(SERVER)
    assert run.unreadable == 0
    assert len(run.nodes) == 2 + 18 + 1
    assert "could not be read" not in lead([run])
    assert "unknown" not in lead([run])


# --- What nobody could count ---


def unknown(known: int = 0) -> list[dict[str, Any]]:
    """A run whose nodes' MACs and examples are unknown, but for some."""
    seen, rows = 0, []
    nothing = dict.fromkeys(("macs", "macs_per_example", "examples", "eval_examples"))
    for found in make_ledger(None, 3, 3).rows:
        seen += found["phase"] == "train"
        lost = found["phase"] in ("train", "explore") and not 0 < seen <= known
        rows.append({**found, **nothing} if lost else found)
    return rows


def test_unknown_macs_are_said_and_known_ones_added(tmp_path: Path) -> None:
    nothing, some = Run("a", unknown()), Run("b", unknown(known=4))

    assert summarise(nothing)["client_macs"] is None
    assert summarise(nothing)["unknown_macs"] == 2 + 9
    assert summarise(some)["client_macs"] == 4 * 3 * 10 * 125
    assert summarise(some)["unknown_macs"] == 2 + 5
    assert total(some.rows, "macs") == 4 * 3 * 10 * 125
    page = render_page([nothing])
    assert '<dd class="value">unknown</dd>' in page
    assert "MACs of 11 messages are unknown." in page
    assert "MACs of 18 messages are unknown." in render_page([nothing, some])
    check_page(page)
    assert not [tag for tag, _ in scalars(nothing.rows) if "macs" in tag]
    assert scalars(some.rows)["cost/client-macs", 2] == 4 * 3 * 10 * 125
    path = write_rows(tmp_path, nothing.rows)
    assert call("report", path, "--out", tmp_path / "page.html").exit_code == 0


# --- What others choose does nothing ---


def call(*words: object) -> Result:
    environment = {"COLUMNS": "80", "TERM": "dumb"}
    return CliRunner(env=environment).invoke(app, [str(word) for word in words])


def test_a_strangers_names_do_nothing_on_a_page(tmp_path: Path) -> None:
    (run,) = read_runs([write_hostile(tmp_path)])

    for page in (render_page([run]), render_page([run, run])):
        check_page(page)
        assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
        assert page.count("<script>") == 1


def test_a_strangers_names_do_nothing_in_a_terminal_or_a_png(tmp_path: Path) -> None:
    path = write_hostile(tmp_path)

    done = call("report", path, "--png", "--out", tmp_path / "[red]\x1b[31m.html")

    assert done.exit_code == 0, done.output
    assert done.output.replace("\n", "").isprintable()
    assert "[red]?[31m <i>$\\x$" in done.stdout


def test_errors_name_a_strangers_file_visibly(tmp_path: Path) -> None:
    path = tmp_path / "[red]\x1b[31m\nnothing"
    path.write_text("junk")

    for words in (["report", path], ["inspect", path], ["tensorboard", path, "x"]):
        done = call(*words)

        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.strip().isprintable()
        assert "[red]?[31m nothing" in done.stderr


def test_a_strangers_names_are_tags(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    path = write_hostile(tmp_path)

    done = call("tensorboard", path, tmp_path / "logs")

    assert done.exit_code == 0, done.output
    (run,) = read_runs([path])
    tags = {tag for tag, _ in scalars(run.rows)}
    assert all(tag.isprintable() for tag in tags)
    assert any(tag.startswith("units/conv1[/x]?[2J") for tag in tags)


@pytest.mark.parametrize("value", [[], "x", None, True, {}, [1, 2], 10**400, -1e308])
def test_metrics_of_any_kind(value: Any) -> None:
    rows = [
        {**found, "metrics": {"top1": value, "odd": value}}
        if found["phase"] == "server" and found["round"] % 2
        else found
        for found in make_ledger(None, 6, 3).rows
    ]
    run = Run("a", rows)

    check_page(render_page([run]))
    assert summarise(run)["value"] is not None
    json.dumps(summarise(run), allow_nan=False)
    assert all(isinstance(v, (int, float)) for v in scalars(rows).values())


def test_the_last_round_that_is_read_is_shown_of_many_groups() -> None:
    """A ledger of few bytes that asks for many numbers."""
    rows = list(make_ledger(None, 2, 2).rows)
    plan = next(found for found in rows if found["phase"] == "plan")
    units = {f"g{number}": 1 for number in range(500)}
    rows.remove(plan)
    rows.append({**plan, "round": 100_000, "plan": {**plan["plan"], "units": units}})

    check_page(render_page([Run("a", rows)]))
