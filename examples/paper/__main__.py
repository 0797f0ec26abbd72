"""The paper's comparison: ``python -m examples.paper run``, ``collect``, ``report``."""

import argparse
import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console
from rich.progress import track

from .methods import GROUPS, METHODS, find_methods
from .records import collect, read_runs
from .report.page import write_report
from .report.paired import paired_markdown
from .runs import LOG, Run, RunError, execute, start_worker
from .tasks import TASKS, find_task


def main() -> None:
    """Do what the command line says; a mistake in it is one line."""
    options = parse()
    try:
        match options.command:
            case "run":
                run(options)
            case "collect":
                print(f"Written: {collect(options.out)}")
            case "compare":
                for task, methods in read_runs(options.out).by_task().items():
                    print(f"### {task}\n\n{paired_markdown(methods)}")
            case "report":
                write_report(options.out, options.results, Console(), options.hardware)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.paper")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make runs that are not made yet")
    run.add_argument("--task", default="all", help=f"all, or of {', '.join(TASKS)}")
    run.add_argument(
        "--methods",
        default="all",
        help=f"all, or of {', '.join(METHODS)}; groups: {', '.join(GROUPS)}",
    )
    run.add_argument(
        "--seeds", type=seeds, default=range(3), help="how many, from 0, or 10-14"
    )
    run.add_argument("--scale", choices=["tiny", "small", "paper"], default="small")
    run.add_argument("--data", default="", help="folder of data sets; else the hub")
    run.add_argument(
        "--evaluate-on",
        choices=["test", "validation"],
        default="test",
        help="validation: what nodes hold out, for choosing among methods",
    )
    run.add_argument("--jobs", type=int, default=2, help="runs at a time")
    gather = commands.add_parser("collect", help="put all finished runs into one file")
    compare = commands.add_parser("compare", help="print a table, seed by seed")
    report = commands.add_parser("report", help="write tables and figures")
    report.add_argument("--results", type=Path, default=Path("runs/paper-report"))
    report.add_argument("--hardware", default="", help="a line on what it ran on")
    for command in (run, gather, compare, report):
        command.add_argument(
            "--out", type=Path, default=Path("runs/paper"), help="the study's folder"
        )
    return parser.parse_args()


def seeds(text: str) -> range:
    """Read a number of seeds, from 0, or the first and the last of them."""
    first, dash, last = text.partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def run(options: argparse.Namespace) -> None:
    """Make all runs that are asked for and not made yet, some at a time."""
    tasks = list(TASKS) if options.task == "all" else options.task.split(",")
    for task in tasks:
        find_task(task)
    methods = find_methods(options.methods)
    if not options.seeds or options.jobs < 1:
        raise RunError("--seeds and --jobs must be at least 1.")
    runs = [  # seed by seed, so that all have one first
        Run(
            *(options.out, task, options.scale, method, seed),
            *(options.data, options.evaluate_on),
        )
        for seed in options.seeds
        for task in tasks
        for method in methods
    ]
    waiting = [one for one in runs if not one.done]
    for one in runs:  # before hours of work, not after
        if one.done:
            one.check()
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them made already.")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, spawn, initializer=start_worker) as pool:
        failed = make_all(waiting, pool)
    if failed:
        lines = "\n  ".join(failed)
        raise RunError(f"{len(failed)} runs are not made; all others are.\n  {lines}")


def make_all(waiting: list[Run], pool: Executor) -> list[str]:
    """Make runs, those first whose size others copy.

    Returns
    -------
    list of str
        What could not be made, and why.

    Raises
    ------
    ValueError
        What a user has to put right; nothing else is started then.
    """
    failed = []
    copies = [one for one in waiting if one.reference is not None]
    for some in ([one for one in waiting if one.reference is None], copies):
        ready = [one for one in some if one.reference is None or one.reference.done]
        failed += [f"{r.name}: AutoFLIP's run failed" for r in some if r not in ready]
        futures = {pool.submit(execute, one): one for one in ready}
        for future in track(as_completed(futures), "runs", len(futures)):
            one = futures[future]
            try:
                future.result()
            except ValueError:
                pool.shutdown(cancel_futures=True)
                raise
            except Exception as error:  # the night goes on
                failed.append(f"{one.name}: {error!r}; see {one.folder / LOG}")
    return failed


if __name__ == "__main__":
    main()
