"""``flwr run`` on a SuperLink of our own, which is stopped by its process id."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


@contextmanager
def superlink(
    folder: Path, python_path: Path | None = None
) -> Iterator[dict[str, str]]:
    """Keep a simulation SuperLink running.

    Parameters
    ----------
    folder : Path
        For its state and its log.
    python_path : Path, optional
        Where apps find modules that are not installed.

    Yields
    ------
    dict
        Environment for ``flwr`` commands that shall reach it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(folder / ".flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    command = [BIN / "flower-superlink", "--insecure", "--simulation"]
    command += ["--isolation", "subprocess", "--host", "127.0.0.1", "--port", port]
    with (folder / "superlink.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_for_port(int(port), process)
        yield environment
    finally:
        # The SuperLink leads a session of its own; its helpers end with it.
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise SystemExit(
        "the SuperLink did not start; see superlink.log in the runs' folder"
    )


def flwr_run(
    app: Path,
    config: Mapping[str, Any],
    num_nodes: int,
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
    num_nodes : int
    environment : mapping
        From :func:`superlink`.
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
    federation = f"num-supernodes={num_nodes} client-resources-num-cpus=1"
    command = [BIN / "flwr", "run", app, "--stream", "-c", text]
    command += ["--federation-config", federation]
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
        for line in process.stdout or ():
            file.write(line)
            yield line
