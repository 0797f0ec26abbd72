"""How a round's cost on the server grows with parameters and with nodes, in a picture.

Three widths of the paper's FEMNIST-CNN with 20 nodes, and 10, 20 and 40 nodes at the
middle width, half of the parameters kept. Everything in turns in one run; medians of
the processor's seconds, as multiples of the smallest size's. Linear growth is a line
of slope 1.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from flwr.clientapp import ClientApp

from examples.inprocess import InProcessGrid

from ..paper.models import FemnistCNN
from .server import Round, autoflip_round, fedavg_round, measure

WIDTHS, NODES = (0.5, 0.71, 1.0), (10, 20, 40)
EXAMPLE = torch.zeros(1, 1, 28, 28)
Row = dict[str, Any]


def prepare(width: float, nodes: int) -> tuple[int, dict[str, Round]]:
    """Count parameters; give FedAvg's and AutoFLIP's round."""
    model, grid = FemnistCNN(62, width), InProcessGrid(ClientApp(), nodes)
    parameters = sum(p.numel() for p in model.parameters())
    autoflip = autoflip_round(model, EXAMPLE, grid, threshold="2x")
    return parameters, {"FedAvg": fedavg_round(model, grid), "AutoFLIP": autoflip}


def grow(sizes: dict[int, dict[str, Round]], repeats: int) -> dict[str, list[float]]:
    """Time all sizes in turns; give each method's costs over its smallest size's."""
    grown = {}
    for method in ("FedAvg", "AutoFLIP"):
        rounds = {str(size): runs[method] for size, runs in sizes.items()}
        grown[method] = [round(r, 3) for r in measure(rounds, repeats).values()]
    return grown


def draw(found: dict[str, Row], path: Path) -> None:
    """Plot costs against sizes, both over the smallest."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
    for panel, (title, row) in zip(panels, found.items(), strict=True):
        sizes = [size / row["sizes"][0] for size in row["sizes"]]
        panel.plot(sizes, sizes, color="0.7", label="linear")
        for method, mark in (("FedAvg", "s--"), ("AutoFLIP", "o-")):
            panel.plot(sizes, row[method], mark, label=method)
        labels = [f"{size:,}" for size in row["sizes"]]
        panel.set(xscale="log", yscale="log", xlabel=title)
        panel.set_xticks(sizes, labels, minor=False)
        panel.set_xticks([], minor=True)
        panel.set_yticks([1, 2, 4], ["1", "2", "4"])
        panel.set_yticks([], minor=True)
    panels[0].set_ylabel("a round's time over the smallest's")
    panels[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, write numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel("ERROR")
    torch.set_num_threads(1)
    models = dict(prepare(width, 20) for width in WIDTHS)
    found: dict[str, Row] = {
        "parameters, 20 nodes": {
            "sizes": list(models),
            **grow(models, options.repeats),
        }
    }
    middle = list(models)[1]
    fleets = {nodes: prepare(WIDTHS[1], nodes)[1] for nodes in NODES}
    found[f"nodes, {middle:,} parameters"] = {
        "sizes": list(NODES),
        **grow(fleets, options.repeats),
    }
    for title, row in found.items():
        print(title, row)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, options.out / "growth.png")


if __name__ == "__main__":
    main()
