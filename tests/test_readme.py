"""The README's code runs as it stands there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid
from torch.utils.data import TensorDataset

from flwr_autoflip import PRESETS, AutoFlip, AutoFlipClient, client_app

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks() -> dict[str, str]:
    """Python blocks by the file name in their first line."""
    code = re.findall(r"```python\n# (\w+\.py)[^\n]*\n(.*?)```", README, re.DOTALL)
    return dict(code)


def test_the_usage_blocks_run() -> None:
    pytest.importorskip("mlxtend")
    from quickstart.task import Net, train

    def data(context: Any) -> TensorDataset:
        return TensorDataset(torch.randn(20, 1, 28, 28), torch.randint(0, 10, (20,)))

    names: dict[str, Any] = {
        "AutoFlip": AutoFlip,
        "AutoFlipClient": AutoFlipClient,
        "client_app": client_app,
        "ArrayRecord": ArrayRecord,
        "FedAvg": lambda **kwargs: FedAvg(fraction_evaluate=0.0, **kwargs),
        "Net": Net,
        "data": data,
        "model": Net(),
        "torch": torch,
        "train": train,
    }
    exec(blocks()["client_app.py"], names)
    names["grid"] = LocalGrid(names["app"], 8)

    server = blocks()["server_app.py"].replace("num_rounds=20", "num_rounds=2")
    exec(server, names)

    small = sum(p.numel() for p in names["small"].parameters())
    assert small < sum(p.numel() for p in Net().parameters())


def test_the_option_table_is_complete() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))

    assert set(PRESETS["default"]) <= listed


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parents[1]
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)

    assert len(links) > 5
    assert [link for link in links if not (root / link).exists()] == []
