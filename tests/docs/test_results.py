"""RESULTS.md shows tables that were made, not typed."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def made_lines(page: Path, section: str) -> list[str]:
    """Give a section's tables, and the lines under them that say how they were made."""
    text = page.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    made = ("|", "### ", "`python -m examples.paper run ")
    return [line for line in text.splitlines() if line.startswith(made)]


def test_the_comparison_is_the_report_in_short() -> None:
    ours = made_lines(ROOT / "RESULTS.md", "The comparison with other methods")

    assert ours == made_lines(ROOT / "docs/results/report.md", "In short")
    assert len(ours) > 50
