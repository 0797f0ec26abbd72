"""Folders of runs: nothing is overwritten, a size is copied from AutoFLIP's run."""

import json
from pathlib import Path

import pytest
from paper_runs import UNITS, write_run

from examples.paper.methods import METHODS
from examples.paper.records import write_atomically
from examples.paper.runs import Run, RunError, all_runs, prepare


def test_another_configuration_is_refused_and_stays(tmp_path: Path) -> None:
    one = Run(tmp_path, "mnist", "tiny", METHODS["fedavg"], 0)
    prepare(one)
    config = one.folder / "config.json"
    changed = json.loads(config.read_text())
    changed["settings"]["lr"] = 9.0
    changed["rounds"] = 7
    config.write_text(json.dumps(changed))
    before = config.read_bytes()

    with pytest.raises(RunError, match="other rounds, settings; choose another --out"):
        prepare(one)

    assert config.read_bytes() == before


def test_the_same_configuration_goes_on(tmp_path: Path) -> None:
    one = Run(tmp_path, "mnist", "tiny", METHODS["fedavg"], 0)

    assert prepare(one) == prepare(one)


@pytest.mark.parametrize(
    ("method", "threshold"),
    [
        ("random", ",".join(f"{name}={count}" for name, count in UNITS.items())),
        ("prunefl", "10x"),
        ("prunefl-own", ""),
        ("fedavg", ""),
    ],
)
def test_who_copies_autoflips_size(tmp_path: Path, method: str, threshold: str) -> None:
    plan = {"parameters": 10, "dense_parameters": 100, "units": UNITS}
    write_run(tmp_path, "autoflip", [0.0] * 7, 1, plan=plan)

    run = Run(tmp_path, "mnist", "small", METHODS[method], 0)

    assert run.setting().threshold == threshold


def test_seed_by_seed_so_that_all_tasks_have_one_first(tmp_path: Path) -> None:
    methods = [METHODS["fedavg"], METHODS["autoflip"]]

    runs = all_runs(tmp_path, ["mnist", "femnist"], "tiny", methods, range(2), "")

    assert [one.label for one in runs] == [
        f"{task} {method} seed {seed}"
        for seed in (0, 1)
        for task in ("mnist", "femnist")
        for method in ("fedavg", "autoflip")
    ]


def test_a_file_is_there_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, "old")

    def cut(self: Path, text: str) -> None:
        with self.open("w") as file:
            file.write(text[:1])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")

    assert path.read_text() == "old"
