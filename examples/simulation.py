"""``flwr run`` on a simulation SuperLink of our own, stopped by its process id."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .processes import flower_environment, free_port, run_app, running, wait_for_port


@contextmanager
def superlink(folder: Path, *python_path: Path) -> Iterator[dict[str, str]]:
    """Keep a simulation SuperLink running.

    Parameters
    ----------
    folder : Path
        For its state and its log.
    *python_path : Path
        Where apps find modules that are not installed.

    Yields
    ------
    dict
        Environment for ``flwr`` commands that shall reach it.
    """
    port = str(free_port())
    environment = flower_environment(folder / ".flwr", *python_path) | {
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    command = ["flower-superlink", "--insecure", "--simulation"]
    command += ["--isolation", "subprocess", "--host", "127.0.0.1", "--port", port]
    log = folder / "superlink.log"
    with running(command, environment, log) as process:
        wait_for_port(int(port), process, log)
        yield environment


def flwr_run(
    app: Path,
    config: Mapping[str, Any],
    num_nodes: int,
    environment: Mapping[str, str],
    log: Path,
) -> Iterator[str]:
    """Run a Flower app on virtual nodes; see :func:`.processes.run_app`."""
    federation = f"num-supernodes={num_nodes} client-resources-num-cpus=1"
    where = ["--federation-config", federation]
    return run_app(app, config, where, environment, log)
