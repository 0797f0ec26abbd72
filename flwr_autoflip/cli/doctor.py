"""``doctor``: Flower's traps, each looked for on this machine, and the way out."""

import importlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import typer
from rich.markup import escape

from ..errors import visible
from .output import console, print_json

FLOWER = (1, 41)
"""The oldest Flower that this package runs on; the next major one is not tried."""
PYTHON = (3, 11)
PORT_VARIABLE = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
DEFAULT_PORT = "39091"
NO_INSTALLATION = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"
RAY = "2.55.1"
"""What Flower's ``simulation`` extra pins."""
ADVICE = {
    NO_INSTALLATION: (
        "1",
        "each `flwr run` installs the app's dependencies into an environment of its "
        "own, where your checkout is shadowed or missing",
    ),
    "FLWR_TELEMETRY_ENABLED": (
        "0",
        "Flower sends usage data; without network it waits",
    ),
    "FLWR_DISABLE_UPDATE_CHECK": ("1", "Flower looks for updates; that needs network"),
}
"""Variable to what it should be, and what happens otherwise."""
SIGNS = {"ok": "green", "warning": "yellow", "problem": "red"}

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What a check found: a problem breaks runs, a warning may; and what to do."""

    check: str
    status: Status
    found: str
    way_out: str = ""


def show_findings(as_json: bool) -> bool:
    """Print every check's finding; tell whether nothing is a problem."""
    findings = examine()
    bad, unsure = (
        sum(finding.status == status for finding in findings)
        for status in ("problem", "warning")
    )
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return not bad
    out = console()
    for finding in findings:
        sign = f"[{SIGNS[finding.status]}]{finding.status}[/]"
        found = escape(visible(finding.found))
        out.print(f"{sign} [bold]{escape(finding.check)}[/]: {found}")
        if finding.way_out:
            out.print(f"   {escape(visible(finding.way_out))}", soft_wrap=True)
    typer.echo(f"\n{bad} problems, {unsure} warnings.")
    return not bad


# --- Checks ---


def examine(
    environ: Mapping[str, str] = os.environ, processes: Path = Path("/proc")
) -> list[Finding]:
    """Run every check; without Linux's folder of processes only ports are looked at."""
    return [
        check_python(sys.version_info[:3]),
        check_flower(installed("flwr")),
        check_ray(installed("ray")),
        check_torch(),
        *check_environment(environ),
        *check_superlink(environ, processes),
    ]


def installed(package: str) -> str | None:
    """Give a package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_python(running: tuple[int, ...]) -> Finding:
    """Look at Python's version."""
    found = ".".join(map(str, running))
    if running >= PYTHON:
        return Finding("Python", "ok", found)
    return Finding("Python", "problem", found, "Use Python 3.11 or newer.")


def check_flower(found: str | None) -> Finding:
    """Look at Flower's version."""
    numbers = tuple(int(n) for n in (found or "0").split(".")[:2] if n.isdecimal())
    if found is not None and numbers >= FLOWER and numbers[:1] == FLOWER[:1]:
        return Finding("Flower", "ok", found)
    way_out = 'Install it: pip install "flwr>=1.41,<2"'
    return Finding("Flower", "problem", found or "not installed", way_out)


def check_ray(found: str | None) -> Finding:
    """Look at the simulation engine, which ``flwr run`` needs for virtual nodes."""
    if found == RAY:
        return Finding("Ray", "ok", found)
    text = f"{found}, Flower pins {RAY}"
    if found is None:
        text = "not installed; `flwr run` cannot simulate nodes without"
    way_out = 'Install it: pip install "flwr-autoflip[simulation]"'
    return Finding("Ray", "warning", text, way_out)


def check_torch(load: Callable[[str], object] = importlib.import_module) -> Finding:
    """Try the pair of torch and torchvision, whose builds must be each other's."""
    torch, vision = installed("torch"), installed("torchvision")
    if torch is None:
        way_out = "Install it: pip install torch"
        return Finding("PyTorch", "problem", "not installed", way_out)
    if vision is None:
        return Finding("PyTorch", "ok", f"torch {torch}, no torchvision (not needed)")
    pair = f"torch {torch} with torchvision {vision}"
    try:
        load("torchvision")
    except Exception as error:  # a build of the other kind fails in many ways
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(
            "PyTorch",
            "problem",
            f"{pair} does not load: {reason}",
            "Install both from one place: pip install --force-reinstall torch "
            "torchvision (a +cpu build of one needs a +cpu build of the other).",
        )
    return Finding("PyTorch", "ok", f"{pair} load together")


def check_environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the variables that make ``flwr run`` dependable."""
    for name, (value, otherwise) in ADVICE.items():
        word = "true" if value == "1" else "false"
        if environ.get(name, "").lower() in (value, word):
            yield Finding(name, "ok", environ[name])
            continue
        way_out = f"Before a SuperLink starts: export {name}={value}"
        yield Finding(name, "warning", f"not {value}: {otherwise}", way_out)


def check_superlink(environ: Mapping[str, str], processes: Path) -> Iterator[Finding]:
    """Look for a SuperLink that an earlier ``flwr run`` left behind.

    Apps run in its folder, with its environment and its package: what was changed since
    it started does not count.
    """
    port = environ.get(PORT_VARIABLE, DEFAULT_PORT)
    pids = list(find_processes(processes, ("flower-superlink", "flower-superexec")))
    if pids:
        numbers = " ".join(map(str, pids))
        found = f"runs already (process {numbers}): "
        found += "apps get the environment it started with"
        stale = not all(_started_well(processes / str(pid)) for pid in pids)
        if stale:
            found += f"; {NO_INSTALLATION}=1 was not in it"
        way_out = f"If it is a leftover of `flwr run`, end it: kill {numbers}"
        yield Finding("SuperLink", "problem" if stale else "warning", found, way_out)
    elif port.isdecimal() and is_open(int(port)):
        way_out = f"End it, or choose another port: export {PORT_VARIABLE}=39191"
        yield Finding("SuperLink", "warning", f"something listens on {port}", way_out)
    else:
        yield Finding("SuperLink", "ok", f"none runs, port {port} is free")


def find_processes(processes: Path, names: tuple[str, ...]) -> Iterator[int]:
    """List processes whose command holds one of these names."""
    for folder in sorted(processes.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended, or is another user's
            continue
        commands = {Path(word.decode(errors="replace")).name for word in words[:3]}
        if commands & set(names):
            yield int(folder.name)


def _started_well(process: Path) -> bool:
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return True  # another user's: nothing is known
    return f"{NO_INSTALLATION}=1".encode() in environment


def is_open(port: int) -> bool:
    """Tell whether something listens on a port of this machine."""
    with socket.socket() as looking:
        looking.settimeout(0.5)
        return looking.connect_ex(("127.0.0.1", port)) == 0
