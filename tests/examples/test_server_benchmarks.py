"""The server's benchmarks on a tiny model: what they count, not how fast it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flwr.clientapp import ClientApp
from torch import nn

from examples.benchmarks import codec, server
from examples.inprocess import InProcessGrid


def tiny() -> nn.Module:
    """Two layers, 1,562 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(49, 30), nn.ReLU(), nn.Linear(30, 2))


TINY = {"tiny": (tiny, torch.zeros(1, 1, 7, 7))}


@pytest.mark.parametrize("averages", [True, False])
def test_all_replies_of_a_round_count(
    averages: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = InProcessGrid(ClientApp(), 3)

    run = server.autoflip_round(tiny(), TINY["tiny"][1], grid, averages, threshold="2x")

    assert run() > 0  # it asserts that each reply was accepted
    assert run() > 0
    assert server.fedavg_round(tiny(), grid)() > 0


def test_ratios_are_to_the_first_round() -> None:
    rounds = {"one": lambda: 2.0, "other": lambda: 3.0}

    assert server.measure(rounds, 3) == {"one": 1.0, "other": 1.5}


def test_codec_gives_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MODELS", TINY)

    assert list(codec.measure("tiny", "1/2", 1)) == ["pack", "unpack", "expand"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_round_is_measured_in_a_fresh_process() -> None:
    command = [sys.executable, "-c", "import sys\n" + MEMORY]
    root = Path(server.__file__).parents[2]

    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)

    fedavg, two, many = json.loads(done.stdout.splitlines()[-1])
    dense = 4 * (784 * 3000 + 3000 + 3000 * 10 + 10)
    assert fedavg > 4 * dense  # four replies at least
    assert two < many  # fourteen replies of half a model more


MEMORY = """
import json, logging
import torch
from torch import nn
from examples.benchmarks import server_memory
logging.getLogger("flwr").setLevel("ERROR")
wide = nn.Sequential(nn.Flatten(), nn.Linear(784, 3000), nn.ReLU(), nn.Linear(3000, 10))
server_memory.MODELS["wide"] = (lambda: wide, torch.zeros(1, 1, 28, 28))
sizes = [("FedAvg", 4), ("average, 1/2 kept", 2), ("average, 1/2 kept", 16)]
print(json.dumps([server_memory.one_round("wide", *size) for size in sizes]))
"""
