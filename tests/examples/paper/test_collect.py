"""Runs in one file: the same figures, the same bytes, nothing made twice."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from paper_runs import RISING, TWICE, write_run, write_two_seeds
from rich.console import Console

from examples.paper.methods import METHODS
from examples.paper.records import collect
from examples.paper.report import write_report
from examples.paper.results import read_runs
from examples.paper.runs import Run, RunError, prepare

ROOT = Path(__file__).parents[3]


def put_away(root: Path) -> Path:
    """Collect, and leave nothing but the file."""
    path = collect(root / "small")
    shutil.rmtree(root / "small")
    return path


def report(root: Path, out: Path) -> str:
    write_report(root / "small", out, Console(quiet=True), "", "two cores")
    return (out / "report.md").read_text()


def test_a_report_says_the_same_of_files_and_folders(tmp_path: Path) -> None:
    write_two_seeds(tmp_path)
    refusal = write_run(tmp_path, "eflprune-bn", TWICE, 4) / "run.json"
    refusal.write_text(json.dumps({"refused": "no BatchNorm here"}))
    expected = report(tmp_path, tmp_path / "folders")

    put_away(tmp_path)

    assert report(tmp_path, tmp_path / "file") == expected
    assert "no BatchNorm here" in expected


def test_the_same_runs_are_the_same_bytes_whoever_collects(tmp_path: Path) -> None:
    write_two_seeds(tmp_path)
    write_run(tmp_path, "autoflip-paper", RISING, 9)
    first = put_away(tmp_path).read_bytes()

    assert collect(tmp_path / "small").read_bytes() == first
    with gzip.open(tmp_path / "small.jsonl.gz", "rt") as file:
        names = [json.loads(line)["run"] for line in file]
    assert names == [
        f"mnist/{run}"
        for run in (
            *("autoflip/seed0", "autoflip/seed1", "autoflip-paper/seed0"),
            *("fedavg/seed0", "fedavg/seed1"),
        )
    ]


def test_a_run_that_is_put_away_is_done_and_its_size_copied(tmp_path: Path) -> None:
    plan = {"parameters": 10, "dense_parameters": 100, "units": {"0": 2}}
    write_run(tmp_path, "autoflip", TWICE, 1, plan=plan)
    put_away(tmp_path)

    one = Run(tmp_path, "mnist", "small", METHODS["autoflip"], 0)
    assert one.done
    assert not Run(tmp_path, "mnist", "small", METHODS["autoflip"], 1).done
    other = Run(tmp_path, "mnist", "small", METHODS["random"], 0)
    assert other.setting().threshold == "0=2"


def test_a_run_that_is_put_away_keeps_its_configuration(tmp_path: Path) -> None:
    one = Run(tmp_path, "mnist", "tiny", METHODS["fedavg"], 0)
    prepare(one)
    (one.folder / "run.json").write_text("{}")
    path = collect(tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny")
    prepare(one)
    assert not one.folder.exists()

    with gzip.open(path, "rt") as file:
        line = json.loads(file.read())
    line["config"]["rounds"] = 7
    path.write_bytes(gzip.compress(json.dumps(line).encode()))

    with pytest.raises(RunError, match="other rounds; choose another --out"):
        prepare(one)


def test_a_run_made_again_replaces_the_old_one(tmp_path: Path) -> None:
    write_two_seeds(tmp_path)
    put_away(tmp_path)
    write_run(tmp_path, "fedavg", [0.9] * len(RISING), 10, seed=1)

    put_away(tmp_path)

    fedavg = [o for o in read_runs(tmp_path / "small").outcomes if o.method == "fedavg"]
    assert [one.result["top1"][0] for one in fedavg] == [0.0, 0.9]


def test_damage_is_one_line_and_changes_nothing(tmp_path: Path) -> None:
    write_two_seeds(tmp_path)
    path = put_away(tmp_path)
    whole = path.read_bytes()
    write_run(tmp_path, "random", TWICE, 4).joinpath("run.json").write_text("{")
    with pytest.raises(ValueError, match="random/seed0 cannot be read"):
        collect(tmp_path / "small")
    assert path.read_bytes() == whole

    for damaged in (whole[:-20], b"no gzip", gzip.compress(b"[]\n"), b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|no finished run") as caught:
            read_runs(tmp_path / "elsewhere" / ".." / "small")
        assert "\n" not in str(caught.value)


def test_nothing_to_collect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run"):
        collect(tmp_path / "small")
    assert not list(tmp_path.iterdir())


# --- What runs are made with, and what they lost ---

MADE = {"version": "0.1.0", "commit": "abc", "torch": "2.9", "date": "2026-11-28"}


def test_the_report_says_what_runs_were_made_with(tmp_path: Path) -> None:
    write_run(tmp_path, "fedavg", RISING, 10, changes={"provenance": MADE})
    write_run(tmp_path, "autoflip", TWICE, 4)

    page = report(tmp_path, tmp_path / "out")

    assert "- Made with flwr-autoflip 0.1.0, commit abc, torch 2.9: 1 run(s)." in page
    assert "- Without a record of what they were made with: 1 run(s)." in page


def test_the_report_says_why_replies_were_lost(tmp_path: Path) -> None:
    failure = {"status": "refused", "first_round": 3, "reason": "values too large"}
    lost = {"lost": 1, "failures": [failure]}
    write_run(tmp_path, "fedavg", RISING, 10, changes=lost)
    write_run(tmp_path, "autoflip", TWICE, 4, changes={"lost": 4})

    page = report(tmp_path, tmp_path / "out")

    said = "FedAvg, seed 0: 1 (refused in round 3: values too large)."
    assert f"- Replies lost, mnist, {said}" in page
    assert "AutoFLIP, seed 0: 4 (reasons were not kept)." in page
