"""The shortest example runs and says what it saved."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "one_round.py"


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("groups")
    assert float(lines[-1].split()[4].rstrip(",")) > 0.5  # four classes


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 80


def test_the_text_model_trains_with_half_its_hidden_units(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(EXAMPLE.with_name("text_round.py")), run_name="__main__")

    *_, units, _, loss = capsys.readouterr().out.splitlines()
    assert units.split()[2:] == ["32", "of", "64"]
    assert float(loss.split()[3]) < 0.9 * float(loss.split()[1])
