"""The README's code runs as it stands there, its tables are the package's."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from grid import LocalGrid
from torch.utils.data import TensorDataset

from flwr_autoflip import AutoFlip, AutoFlipClient, client_app, methods

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\S+)[^\n]*\n(.*?)```", README, re.DOTALL))
"""Python by the first word of its first line."""


def test_the_python_blocks_run() -> None:
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
        "x": torch.zeros(1, 1, 28, 28),
    }
    exec(BLOCKS["client_app.py:"], names)
    names["grid"] = LocalGrid(names["app"], 8)

    exec(BLOCKS["server_app.py"].replace("num_rounds=20", "num_rounds=2"), names)
    exec(BLOCKS["methods"], names)

    small = sum(p.numel() for p in names["small"].parameters())
    assert small < sum(p.numel() for p in Net().parameters())


def test_the_tables_list_every_option_with_its_default_and_every_method() -> None:
    listed = dict(re.findall(r"^\| `(\w+)` \| (?:`(.*?)` )?\|", README, re.MULTILINE))
    taken = inspect.signature(AutoFlip).parameters.values()

    assert listed == {
        p.name: "" if p.default is p.empty else repr(p.default).replace("'", '"')
        for p in taken
    }
    # `"eflprune-l1"` (`-l2`, ...) stands for names with that beginning.
    shown = {n for n in methods.NAMES if f'`"{n}"`' in README}
    shown |= {f"eflprune-{n}" for n in re.findall(r"`-(\w+)`", README)}
    assert shown == set(methods.NAMES)


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parents[1]
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)

    assert len(links) > 5
    assert [link for link in links if not (root / link).exists()] == []
