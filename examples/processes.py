"""Processes of Flower's: their environment; started, watched, stopped by their ids."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

BIN = Path(sys.executable).parent
START_SECONDS = 60
STOP_SECONDS = 20

Process = subprocess.Popen[bytes]


def flower_environment(home: Path, *python_path: Path) -> dict[str, str]:
    """Give what Flower's commands need to be dependable and to leave nothing behind.

    Parameters
    ----------
    home : Path
        Flower's own folder: connections, app bundles.
    *python_path : Path
        Where apps find modules that are not installed.

    Returns
    -------
    dict
        The whole environment, this process's included.
    """
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    if python_path:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, python_path))
    return environment


def free_port() -> int:
    """Find a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


# --- Start and stop ---


def start(command: Sequence[Any], environment: Mapping[str, str], log: Path) -> Process:
    """Start one of Flower's commands, which a Ctrl-C in this terminal does not reach.

    All it prints goes to a log; :func:`stop` ends it.
    """
    name, *arguments = map(str, command)
    with log.open("w") as file:
        return subprocess.Popen(
            [str(BIN / name), *arguments],
            env=dict(environment),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def stop(*processes: Process, how: signal.Signals = signal.SIGTERM) -> None:
    """End processes and all that they started, by their ids, and wait for that.

    Parameters
    ----------
    *processes : Popen
    how : signal (default: SIGTERM)
        SIGKILL is a device that loses power.
    """
    family: dict[int, str] = {}
    for process in processes:
        family |= descendants(process.pid)
    for process in processes:
        process.send_signal(how)
    deadline = time.monotonic() + (0 if how == signal.SIGKILL else STOP_SECONDS)
    for process in processes:
        try:
            process.wait(timeout=max(1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    # Flower's helpers watch their parents and end by themselves, within a second or so.
    while left := still_alive(family):
        if time.monotonic() > deadline:
            for pid in left:
                _kill(pid)
        time.sleep(0.2)


def descendants(pid: int) -> dict[int, str]:
    """Find what a process started, and what that started.

    Returns
    -------
    dict of int to str
        Process id to start time: an id alone may be given to somebody else.
    """
    everyone, family, parents = _processes(), dict[int, str](), {pid}
    while parents:
        children = {
            p: born for p, (parent, born) in everyone.items() if parent in parents
        }
        family |= children
        parents = set(children)
    return family


def still_alive(family: Mapping[int, str]) -> list[int]:
    """Give the ids of those of :func:`descendants` that still run."""
    return [p for p, row in _processes().items() if row[1] == family.get(p)]


def _processes() -> dict[int, tuple[int, str]]:
    """List process ids with parents and start times; the dead ones are left out."""
    command = ["ps", "-A", "-o", "pid=,ppid=,stat=,lstart="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=3) for line in listing.stdout.splitlines()]
    return {int(r[0]): (int(r[1]), r[3]) for r in rows if not r[2].startswith("Z")}


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it was about to end


@contextmanager
def running(
    command: Sequence[Any], environment: Mapping[str, str], log: Path
) -> Iterator[Process]:
    """Keep a process running; see :func:`start` and :func:`stop`.

    A SIGTERM to this process ends both: the other is in a session of its own and would
    live on.
    """
    before = signal.signal(signal.SIGTERM, _exit)
    process = start(command, environment, log)
    try:
        yield process
    finally:
        stop(process)
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    """Unwind the stack where a signal would end us on the spot."""
    sys.exit(128 + number)


def wait_for_port(port: int, process: Process, log: Path) -> None:
    """Wait until a process listens.

    Raises
    ------
    SystemExit
        If it ends before, or takes longer than a minute.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit(f"the SuperLink did not start; see {log}")


# --- Flower's command line ---


def run_app(
    app: Path,
    config: Mapping[str, Any],
    where: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
) -> Iterator[str]:
    """Run a Flower app to its end; write what it prints to a log, and yield it.

    Parameters
    ----------
    app : Path
        Folder with the app's ``pyproject.toml``.
    config : mapping
        Run config.
    where : sequence of str
        More arguments of ``flwr run``, that say which nodes.
    environment : mapping
        From :func:`flower_environment`.
    log : Path

    Yields
    ------
    str
        A line of the log.
    """
    text = " ".join(
        f"{key}={json.dumps(value) if isinstance(value, str) else value}"
        for key, value in config.items()
    )
    command = [str(BIN / "flwr"), "run", str(app), *where, "--stream", "-c", text]
    with (
        log.open("w") as file,
        subprocess.Popen(
            command,
            env=dict(environment),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                file.write(line)
                file.flush()
                yield line
        finally:
            process.terminate()  # whoever reads may stop before the run does


def ask(command: Sequence[Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a ``flwr`` command that answers in JSON.

    Raises
    ------
    SystemExit
        If Flower refuses; with what it says.
    """
    done = subprocess.run(
        [str(BIN / "flwr"), *map(str, command), "--format", "json"],
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    # A line for humans may precede the JSON.
    found = re.search(r"^\{.*", done.stdout, re.DOTALL | re.MULTILINE)
    answer: dict[str, Any] = json.loads(found[0]) if found else {}
    if not answer.get("success"):
        said = answer.get("error-message") or done.stderr or done.stdout
        text = " ".join(str(said).split())
        raise SystemExit(f"flwr {' '.join(map(str, command))}: {text}")
    return answer
