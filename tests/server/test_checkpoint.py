"""A run's state in a folder: whole or not there, this run's or refused."""

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg, FedAvgM
from models import layout_of, mlp_layout

from flwr_autoflip import AutoFlipError, AutoFlipWarning
from flwr_autoflip.graph.codec import layout_digest
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.storage import write_arrays
from flwr_autoflip.ledger.ledger import Ledger
from flwr_autoflip.ledger.rows import NodeRow
from flwr_autoflip.methods.base import State
from flwr_autoflip.server.persistence.checkpoint import FORMAT, Checkpoints
from flwr_autoflip.server.persistence.deviations import store_report
from flwr_autoflip.server.persistence.tree import Tree
from flwr_autoflip.server.state import RunState

LAYOUT = mlp_layout()
SMALL = Plan(LAYOUT, {g.name: np.arange(1) for g in LAYOUT.groups})
SETTINGS = {"method": "L1()", "value_dtype": "'int8'"}


@dataclass(frozen=True)
class Guided(State):
    """A method's state with something of everything."""

    scores: dict[str, Any] = field(default_factory=dict)
    reports: dict[int, Any] = field(default_factory=dict)
    initial: Any = None


def fresh() -> RunState:
    method = Guided(dense_plan(LAYOUT))
    return RunState(method, ArrayRecord({}), ConfigRecord({}), ConfigRecord({}))


def in_round(number: int) -> RunState:
    return replace(
        fresh(),
        arrays=ArrayRecord({"w": Array(np.full(3, number, np.float32))}),
        trained=number,
        done=number,
        train={number: MetricRecord({"loss": 0.5})},
    )


class Folder:
    """One command's folder, and what it would find at a start."""

    def __init__(self, path: Path, noisy: bool = False) -> None:
        self.path, self.ledger = path, Ledger(path / "ledger.jsonl")
        self.checkpoints = Checkpoints(path, SETTINGS, LAYOUT, noisy)
        self.strategy = FedAvgM(server_momentum=0.9)

    def save(self, *numbers: int) -> None:
        for number in numbers:
            self.ledger.add(NodeRow(number, "train", 7))
            self.checkpoints.save(in_round(number), self.strategy, self.ledger)

    def open(self, num_rounds: int = 9) -> Any:
        return self.checkpoints.open(fresh(), self.strategy, self.ledger, num_rounds)

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.glob("checkpoint*"))

    @property
    def contents(self) -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in self.path.rglob("*") if p.is_file()}


def test_an_empty_folder_has_nothing_and_stays_empty(tmp_path: Path) -> None:
    assert Folder(tmp_path).open() is None
    assert Folder(tmp_path / "missing").open() is None
    assert not list(tmp_path.iterdir())


def test_all_of_a_state_comes_back(tmp_path: Path) -> None:
    one, other = Folder(tmp_path), Folder(tmp_path)
    report = store_report(one.checkpoints.reports, 5, {"w": np.float32([1, 2])})
    initial = {"w": np.arange(6.0).reshape(2, 3)}
    method = Guided(SMALL, {"fc1": np.float64([1, 2])}, {5: report}, initial)
    one.strategy.momentum_vector = [np.ones(2)]
    saved = replace(
        in_round(3), method=method, budgets={5: "macs:0.5"}, server={0: MetricRecord()}
    )

    one.ledger.clear()
    one.checkpoints.save(saved, one.strategy, one.ledger)
    found = other.open()

    assert isinstance(found, RunState)
    assert isinstance(found.method, Guided)
    np.testing.assert_array_equal(found.method.plan.alive, SMALL.alive)
    np.testing.assert_array_equal(found.method.scores["fc1"], [1, 2])
    np.testing.assert_array_equal(found.method.reports[5]["w"], [1, 2])
    np.testing.assert_array_equal(found.method.initial["w"], initial["w"])
    np.testing.assert_array_equal(found.arrays["w"].numpy(), [3, 3, 3])
    assert (found.trained, found.done, found.budgets) == (3, 3, {5: "macs:0.5"})
    assert (found.train, found.server) == (saved.train, saved.server)
    np.testing.assert_array_equal(other.strategy.momentum_vector, [np.ones(2)])


def test_one_record_in_two_places_is_one_again(tmp_path: Path) -> None:
    """FedAvgM's idea of the global model and ours."""
    one, other = Folder(tmp_path), Folder(tmp_path)
    state = in_round(1)
    one.strategy.current_arrays = state.arrays
    one.ledger.clear()
    one.checkpoints.save(state, one.strategy, one.ledger)

    assert other.open().arrays is other.strategy.current_arrays


@pytest.mark.parametrize("noisy", [False, True])
def test_generators_go_on_where_they_were_but_not_noise(
    tmp_path: Path, noisy: bool
) -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002

    draw()
    Folder(tmp_path, noisy).save(1)
    expected = draw()
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(5)

    Folder(tmp_path, noisy).open()

    assert [one == other for one, other in zip(draw(), expected, strict=True)] == [
        not noisy
    ] * 3


def test_a_field_that_no_checkpoint_holds_is_named(tmp_path: Path) -> None:
    method = Guided(SMALL, scores={"fc1": object()})

    with pytest.raises(AutoFlipError, match=r"field 'scores' of Guided: object"):
        Checkpoints(tmp_path, {}, LAYOUT, False).save(
            replace(fresh(), method=method), FedAvg(), Ledger()
        )

    assert not list(tmp_path.iterdir())


# --- Whole or not there ---


class Killed(BaseException):
    """Nothing that any code catches."""


@pytest.mark.parametrize(
    ("owner", "step", "after"),
    [
        *((os, "fsync", False), (Path, "replace", False)),
        *((Path, "glob", True), (Path, "unlink", True)),
    ],
)
def test_a_kill_while_one_is_written_leaves_it_or_the_one_before(
    tmp_path: Path, owner: Any, step: str, after: bool
) -> None:
    one = Folder(tmp_path)
    one.save(1, 2)
    mark = one.ledger.mark()
    with (
        patch.object(one.ledger, "mark", return_value=mark),
        patch.object(owner, step, side_effect=Killed),
        pytest.raises(Killed),
    ):
        one.checkpoints.save(in_round(3), one.strategy, one.ledger)

    again = Folder(tmp_path)

    assert again.open().done == (3 if after else 2)
    again.save(4, 5)
    assert len(again.names) == 2
    assert Folder(tmp_path).open().done == 5


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    one = Folder(tmp_path)
    one.save(1, 2, 3)

    assert one.names == [f"checkpoint-{n:06}.safetensors" for n in (2, 3)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another_ledger(path: Path) -> None:
    ledger = path.with_name("ledger.jsonl")
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(True)[:2]))


@pytest.mark.parametrize("damage", [cut, flip, empty, of_another_ledger])
def test_a_damaged_one_gives_way_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    Folder(tmp_path).save(1, 2, 3)
    one = Folder(tmp_path)
    damage(tmp_path / one.names[-1])

    with pytest.warns(AutoFlipWarning, match="Going on from the checkpoint before it"):
        assert one.open().done == 2

    statuses = [row["status"] for row in one.ledger.rows]
    assert statuses == ["ok", "ok", "lost"][: 2 if damage is of_another_ledger else 3]
    one.save(4)  # in the damaged one's place
    assert Folder(tmp_path).open().done == 4


def test_nothing_whole_is_one_error_and_stays_as_it_is(tmp_path: Path) -> None:
    one = Folder(tmp_path)
    one.save(1, 2)
    for name in one.names:
        flip(tmp_path / name)
    files = one.contents

    with pytest.raises(AutoFlipError, match=r"holds no whole checkpoint: .* delete"):
        Folder(tmp_path).open()

    assert one.contents == files


PCG = ["dict", ["state", 10**60], ["inc", 1]]
HALF = [["has_uint32", 10**30], ["uinteger", 0]]
TREES: list[Any] = [
    ["same", 5],
    ["array", "no such"],
    ["no such kind", 1],
    ["dict", 1],
    ["dict", [["list"], 1]],
    ["bytes", "?"],
    ["plan", ["bytes", "AAAA"]],
    ["report", 1],
    ["generator", ["dict", ["bit_generator", "test"]]],
    ["random", 1],
    ["generator", ["dict", ["bit_generator", "PCG64"], ["state", PCG], *HALF]],
    {"a": 1},
    [],
]


@pytest.mark.parametrize("tree", TREES, ids=str)
@pytest.mark.parametrize("place", [1, 3])
def test_a_tree_that_no_writer_wrote(tmp_path: Path, tree: Any, place: int) -> None:
    settings = {"model": layout_digest(LAYOUT).hex(), **SETTINGS}
    whole = [Tree().write(settings), ["dict"], None, []]
    whole[place] = tree if place == 1 else [["arrays", tree]]
    if place == 3 and tree == {"a": 1}:
        whole[place] = [["no such field", 1]]
    path = tmp_path / "checkpoint-000001.safetensors"
    write_arrays(path, {}, {"format": FORMAT, "state": json.dumps(whole)})

    with pytest.raises(AutoFlipError, match="holds no state"):
        Folder(tmp_path).open()

    write_arrays(path, {}, {"format": "flwr-autoflip checkpoint 1"})
    with pytest.raises(AutoFlipError, match=r"expected format .* checkpoint 2.*, got"):
        Folder(tmp_path).open()


# --- Another run ---


@pytest.mark.parametrize(
    ("settings", "layout", "message"),
    [
        (SETTINGS | {"method": "Random()"}, LAYOUT, r"method was L1\(\), is Random"),
        ({"method": "L1()"}, LAYOUT, "value_dtype was 'int8', is absent"),
        (SETTINGS | {"more": "None"}, LAYOUT, "more was absent, is None"),
        (SETTINGS, layout_of("conv_flat"), "model was [0-9a-f]+, is [0-9a-f]+"),
    ],
)
def test_another_run_is_refused_and_the_folder_stays(
    tmp_path: Path, settings: dict[str, str], layout: Any, message: str
) -> None:
    one = Folder(tmp_path)
    one.save(1)
    files = one.contents
    other = Checkpoints(tmp_path, settings, layout, False)

    with pytest.raises(AutoFlipError, match=f"holds another run: {message}") as error:
        other.open(fresh(), FedAvgM(), Ledger(tmp_path / "ledger.jsonl"), 9)

    assert "\n" not in str(error.value)
    assert one.contents == files


def test_fewer_rounds_than_are_done_are_refused(tmp_path: Path) -> None:
    one = Folder(tmp_path)
    one.save(1, 2)
    files = one.contents

    with pytest.raises(AutoFlipError, match="in round 2 already, num_rounds is 1"):
        Folder(tmp_path).open(num_rounds=1)

    assert one.contents == files
    assert Folder(tmp_path).open(num_rounds=2).done == 2
