"""The commands, as a person and as a program would run them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from federation import EXAMPLE, TinyNet
from ledgers import make_ledger
from torch import nn
from typer.testing import CliRunner, Result

from flwr_autoflip import Plan, __version__, save_pruned, shrink, trace
from flwr_autoflip.cli.inspect import layer_sizes
from flwr_autoflip.cli.main import app
from flwr_autoflip.ledger.cost import measure_cost

LAYOUT = trace(TinyNet(), EXAMPLE)
KEEP = {"conv": np.array([0, 2, 5]), "fc1": np.array([1, 2, 6, 7])}
MAIN = "from flwr_autoflip.cli.main import app; app()"
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def call(*words: object) -> Result:
    """Run a command in this process, 80 columns wide."""
    environment = {"COLUMNS": "80", "TERM": "dumb"}
    return CliRunner(env=environment).invoke(app, [str(word) for word in words])


def in_terminal(*words: object) -> list[str]:
    """Run a command in a real terminal of 80 columns; give its lines."""
    pty, fcntl, termios = (pytest.importorskip(n) for n in ("pty", "fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x18\x00\x50\x00\x00\x00\x00\x00")
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    command = [sys.executable, "-c", MAIN, *map(str, words)]
    process = subprocess.Popen(
        command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            output += (part := os.read(ours, 4096))
        except OSError:  # its other end is closed
            break
        if not part:
            break
    os.close(ours)
    assert process.wait(timeout=60) == 0, output
    return [line.rstrip("\r") for line in ANSI.sub("", output.decode()).split("\n")]


def test_help_and_version() -> None:
    shown = call("--help")

    assert call("--version").stdout.strip() == __version__
    for name in ("report", "inspect", "export", "doctor", "tensorboard"):
        assert name in shown.stdout
        assert call(name, "--help").exit_code == 0


def test_the_command_is_installed() -> None:
    import tomllib

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    scripts = tomllib.loads(text)["project"]["scripts"]

    assert scripts == {"flwr-autoflip": "flwr_autoflip.cli.main:app"}


HEAVY = ("torch", "flwr", "torchvision")


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        *((words, (*HEAVY, "matplotlib")) for words in ("--help", "report --help")),
        *(("doctor", (*HEAVY, "matplotlib")), ("report RUN --out PAGE", HEAVY)),
    ],
)
def test_it_answers_without_heavy_packages(
    tmp_path: Path, words: str, missing: tuple[str, ...]
) -> None:
    """``doctor`` must work where they do not, and others must not take seconds."""
    make_ledger(tmp_path, 3, 2)
    words = words.replace("RUN", str(tmp_path)).replace("PAGE", f"{tmp_path}/x.html")
    code = (
        f"import sys; sys.modules |= dict.fromkeys({missing})\n"
        f"sys.argv[1:] = {words.split()}\n{MAIN}\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert "Traceback" not in done.stderr
    assert len(done.stdout) > 100


def test_errors_are_one_line_and_say_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_ledger(tmp_path / "run", 1, 1)
    (tmp_path / "bad").write_text("junk")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    commands = [
        (["report", tmp_path / "nowhere"], "does not exist; name a ledger file"),
        (["report", tmp_path / "bad"], "holds no rows of a ledger"),
        (["report", tmp_path / "run"], 'pip install "flwr-autoflip[plots]"'),
        (["inspect", tmp_path / "bad"], "is no whole pruned model"),
        (["inspect", tmp_path / "nowhere"], "is no whole pruned model"),
        (["tensorboard", tmp_path / "x", "y"], "does not exist; name a ledger"),
    ]
    for words, expected in commands:
        done = call(*words)

        assert done.exit_code == 1, words
        assert done.stdout == ""
        assert expected in done.stderr
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) == 1
    assert not Path("report.html").exists()


# --- report ---


def test_report_writes_a_page_and_figures_in_80_columns(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("short", "a-run-with-quite-a-long-name-as-people-give-them-seed0"):
        make_ledger(tmp_path / "runs" / name, 6, 3, faults=True)
    out = tmp_path / "pages" / "page.html"

    lines = in_terminal("report", tmp_path / "runs", "--out", out)

    assert out.read_text().startswith("<!DOCTYPE html>")
    table = [line for line in lines if line and not line.startswith("Written")]
    assert table[0].split() == [
        *("run", "rounds", "accuracy", "kept", "moved", "saved", "failures"),
    ]
    assert max(map(len, table)) <= 80
    assert "25 %" in " ".join(table)
    assert "a-run-with" in " ".join(table)


def test_report_for_programs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    make_ledger(tmp_path, 6, 3)
    out = tmp_path / "page.html"

    done = call("report", tmp_path, "--out", out, "--png", "--json")

    found = json.loads(done.stdout)
    assert found["files"][:2] == [str(out), str(tmp_path / "page-curves.png")]
    assert all(Path(file).stat().st_size for file in found["files"])
    assert found["runs"][0]["exploration_bytes"] == 4200


# --- inspect ---


def test_layers_by_hand_and_in_the_model_that_is_built() -> None:
    plan = Plan(LAYOUT, KEEP)

    layers = layer_sizes(plan)

    conv, norm, fc1, fc2 = layers
    assert (conv["name"], conv["dense_shape"]) == ("conv", (6, 1, 3, 3))
    assert conv["shape"] == (3, 1, 3, 3)
    assert (conv["dense_parameters"], conv["parameters"]) == (6 * 9 + 6, 3 * 9 + 3)
    assert (conv["dense_macs"], conv["macs"]) == (64 * 54, 64 * 27)
    assert (norm["name"], norm["parameters"], norm["macs"]) == ("norm", 6, 0)
    assert (fc1["dense_shape"], fc1["shape"]) == ((8, 96), (4, 48))
    assert (fc2["parameters"], fc2["macs"]) == (3 * 4 + 3, 3 * 4)
    small = measure_cost(shrink(TinyNet(), plan), EXAMPLE)
    assert sum(layer["parameters"] for layer in layers) == small.parameters
    assert sum(layer["macs"] for layer in layers) == small.macs


def test_pruned_single_weights_save_parameters_alone() -> None:
    mask = {"fc1.weight": np.zeros((8, 96), np.bool_)}
    mask["fc1.weight"][:, :10] = True

    whole, cut = (layer_sizes(Plan(LAYOUT, KEEP, m))[2] for m in ({}, mask))

    assert cut["parameters"] == 4 * 10 + 4 < whole["parameters"]
    assert cut["macs"] == whole["macs"]


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_pruned(tmp_path / "model.safetensors", TinyNet(), Plan(LAYOUT, KEEP))
    return tmp_path / "model.safetensors"


def test_inspect_shows_layers_before_and_after(model_file: Path) -> None:
    lines = call("inspect", model_file).stdout.splitlines()

    rows = [line.split() for line in lines]
    assert rows[1][:6] == ["conv", "6x1x3x3", "3x1x3x3", "30", "(50", "%)"]
    assert rows[3][:3] == ["fc1", "8x96", "4x48"]
    assert max(map(len, lines)) <= 80
    small = 3 * 10 + 2 * 3 + 4 * 49 + 3 * 5
    assert f"{small} ({100 * small / 875:.0f} %)" in "\n".join(lines)


def test_inspect_for_programs(model_file: Path) -> None:
    found = json.loads(call("inspect", model_file, "--json").stdout)

    assert found["file_bytes"] == model_file.stat().st_size
    assert found["dense_parameters"] == 875
    assert found["units"]["conv"] == {"kept": 3, "dense": 6}
    assert found["macs"] == 64 * 27 + 4 * 48 + 3 * 4
    names = [layer["name"] for layer in found["layers"]]
    assert names == ["conv", "norm", "fc1", "fc2"]
    assert found["bytes"] < found["dense_bytes"]


LONG = "a_module_with_a_name_that_nobody_would_want_to_read_aloud_or_to_type"


@pytest.mark.parametrize("name", [LONG, "[/x]", "[red]out[link=x]"])
def test_names_fold_and_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    deep = nn.Sequential()
    deep.add_module(name, nn.Sequential(nn.Linear(1000, 2000), nn.ReLU()))
    deep.add_module("output", nn.Linear(2000, 10))
    layout = trace(deep, torch.zeros(1, 1000))
    plan = Plan(layout, {g.name: np.arange(g.size // 2) for g in layout.groups})
    save_pruned(tmp_path / "x", deep, plan)

    done = call("inspect", tmp_path / "x")

    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    width = lines[0].index("before")
    assert name in "".join(line[:width].strip() for line in lines[1:])
