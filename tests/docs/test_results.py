"""RESULTS.md and docs/results show what the kept runs say."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from examples.paper.records import read_runs
from examples.paper.report import page
from examples.paper.report.paired import paired_markdown

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
NAMES = {"MNIST": "mnist", "CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
NAMES |= {"FEMNIST": "femnist", "Shakespeare": "shakespeare"}


def rows_of(text: str) -> dict[str, list[str]]:
    """Read a table's rows, first cell to the others."""
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    rows = [re.split(r" *\| *", line) for line in lines]
    return {first: [cell.strip() for cell in rest] for first, *rest in rows}


def made_lines(text: str) -> list[str]:
    """Give a section's tables, and the lines under them that say how they were made."""
    made = ("|", "### ", "`python -m examples.paper run ")
    return [line for line in text.splitlines() if line.startswith(made)]


def section(path: Path, title: str) -> str:
    return path.read_text().split(f"# {title}\n")[1].split("\n## ")[0]


def test_the_comparison_is_the_report_in_short() -> None:
    ours = made_lines(section(ROOT / "RESULTS.md", "The comparison with other methods"))

    assert ours == made_lines(section(RESULTS / "report.md", "In short"))
    assert len(ours) > 50


@pytest.mark.slow
def test_the_report_is_what_the_runs_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_draw_figures", lambda *args: ([], {}, []))
    monkeypatch.chdir(ROOT)
    hardware = "2 cores of an AMD EPYC, no accelerator"
    study = Path("docs/results/comparison")

    page.write_report(study, tmp_path, Console(quiet=True), hardware=hardware)

    made, kept = (path / "report.md" for path in (tmp_path, RESULTS))
    tables = [path.read_text().split("## Figures")[0] for path in (made, kept)]
    assert tables[0] == tables[1]


def test_the_defaults_tables_are_what_the_runs_say() -> None:
    text = section(ROOT / "RESULTS.md", "The default, on seeds it was not chosen on")
    first, second = text.split("### Spending what is saved")
    alone, epochs = rows_of(first), rows_of(second)

    tasks = read_runs(RESULTS / "default").by_task()

    for shown, task in NAMES.items():
        rows = rows_of(paired_markdown(tasks[task]))
        assert alone[shown] == [rows["FedAvg"][0], *rows["AutoFLIP"]]
        top1, apart, *costs, _ = rows["AutoFLIP, twice the epochs"]
        assert [*epochs[shown][:2], *epochs[shown][4:]] == [top1, apart, *costs]
