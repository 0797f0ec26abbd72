"""The command line: mistakes are one line, a night's work survives one failure."""

import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from examples.paper import cli
from examples.paper.methods import METHODS
from examples.paper.runs import Run, execute


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["examples.paper", *words])
    cli.main()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--task", "mnits"), "error: task: expected one of mnist, .*got 'mnits'"),
        (("--methods", "fedvg"), "error: methods: expected some of all, .*'fedvg'"),
        (("--seeds", "0"), "error: --seeds and --jobs must be at least 1"),
        (("--task", "mnist", "--jobs", "0"), "error: --seeds and --jobs must be"),
    ],
)
def test_a_mistake_is_one_line_and_makes_nothing(
    words: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    with pytest.raises(SystemExit, match=line) as caught:
        call(monkeypatch, "run", "--out", str(out), *words)

    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.slow
def test_runs_that_are_made_stay_and_the_rest_is_made(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Run(tmp_path, "mnist", "tiny", METHODS["fedavg"], 0, str(data_dir))
    execute(made)
    before = made.result()

    call(
        monkeypatch,
        *("run", "--task", "mnist", "--methods", "fedavg,random", "--scale", "tiny"),
        *("--seeds", "1", "--data", str(data_dir), "--out", str(tmp_path)),
    )

    assert made.result() == before  # seconds included: it was not made again
    for name in ("autoflip", "random"):
        other = Run(tmp_path, "mnist", "tiny", METHODS[name], 0, str(data_dir))
        assert len(other.result()["top1"]) == other.rounds + 1


class Pool:
    """Runs at once, as told."""

    def __init__(self, failing: set[str], error: Exception) -> None:
        self.failing, self.error = failing, error
        self.asked: list[str] = []

    def submit(self, execute: Any, run: Run, backend: str) -> Future[None]:
        self.asked.append(run.method.name)
        future: Future[None] = Future()
        if run.method.name in self.failing:
            future.set_exception(self.error)
            return future
        run.folder.mkdir(parents=True)
        (run.folder / "run.json").write_text("{}")
        future.set_result(None)
        return future


def make(pool: Pool, root: Path) -> list[str]:
    names = ("fedavg", "autoflip", "random", "prunefl-own")
    waiting = [Run(root, "mnist", "tiny", METHODS[name], 0) for name in names]
    with Progress(disable=True) as bars:
        return cli.make_all(waiting, pool, bars, 2, "in-process")  # type: ignore[arg-type]


def test_the_night_goes_on_after_a_failure(tmp_path: Path) -> None:
    pool = Pool({"autoflip"}, MemoryError("no room"))

    failed = make(pool, tmp_path)

    assert pool.asked == ["fedavg", "autoflip", "prunefl-own"]
    assert len(failed) == 2
    assert "mnist autoflip seed 0: MemoryError('no room')" in failed[0]
    assert failed[1] == "mnist random seed 0: AutoFLIP's run failed"


def test_what_a_user_must_put_right_stops_everything(tmp_path: Path) -> None:
    pool = Pool({"fedavg"}, ValueError("no such file"))

    with pytest.raises(ValueError, match="no such file"):
        make(pool, tmp_path)

    assert "prunefl-own" not in pool.asked
