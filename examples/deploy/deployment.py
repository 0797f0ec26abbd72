"""A SuperLink and SuperNodes on this machine: TLS, registered keys, free ports."""

import re
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..processes import (
    START_SECONDS,
    Process,
    ask,
    flower_environment,
    free_port,
    run_app,
    running,
    start,
    stop,
    wait_for_port,
)
from .keys import LOOPBACK, make_certificates, make_node_key

NAME = "deployment"
"""What Flower's configuration calls the connection."""
PARTITIONS = 20
"""As in the simulation; a device holds one of them."""
ROOT = Path(__file__).parents[2]
MODULES = (ROOT, ROOT / "examples" / "quickstart")
"""This checkout, installed or not, and the quickstart, for apps that build on it."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Deployment:
    """A SuperLink that runs, and the SuperNodes that it knows.

    Parameters
    ----------
    folder : Path
        Absolute. Keys, logs, and a folder of its own for each process's Flower home.
    address : str
        The SuperLink's, ``host:port``.
    environment : dict of str to str
        For ``flwr`` commands.
    node_ids : dict of int to int
        Number of a node to Flower's id of it.
    supernodes : dict of int to Popen
        Those that were started.
    """

    folder: Path
    address: str
    environment: dict[str, str]
    node_ids: dict[int, int] = field(default_factory=dict)
    supernodes: dict[int, Process] = field(default_factory=dict)

    def key(self, number: int) -> Path:
        """Path of a node's private key."""
        return self.folder / "keys" / f"supernode-{number}"

    def node_log(self, number: int) -> Path:
        """Path of what a SuperNode prints."""
        return self.folder / f"supernode-{number}.log"

    def register(self, number: int) -> None:
        """Make a node's key and tell the SuperLink of it."""
        make_node_key(self.key(number))
        public = f"{self.key(number)}.pub"
        answer = ask(["supernode", "register", public, NAME], self.environment)
        self.node_ids[number] = int(answer["node-id"])

    def start_node(self, number: int, ca: Path | None = None) -> None:
        """Start a SuperNode; :meth:`wait_for_node` says whether it was let in.

        Parameters
        ----------
        number : int
        ca : Path, optional
            The authority that it trusts; left out, the SuperLink's.
        """
        home = self.folder / f"supernode-{number}"
        home.mkdir(exist_ok=True)
        partition = 4 * (number % 5) + number // 5  # the first five hold all digits
        node_config = f"partition-id={partition} num-partitions={PARTITIONS}"
        command = ["flower-supernode", "--superlink", self.address]
        command += ["--root-certificates", str(ca or self.folder / "keys" / "ca.crt")]
        command += ["--auth-supernode-private-key", str(self.key(number))]
        command += ["--host", LOOPBACK, "--port", str(free_port())]
        command += ["--node-config", node_config]
        environment = flower_environment(home / ".flwr", *MODULES)
        self.supernodes[number] = start(command, environment, self.node_log(number))

    def wait_for_node(self, number: int) -> None:
        """Wait until the SuperLink has let a node in.

        Raises
        ------
        SystemExit
            If it was refused; one line says why.
        """
        log, process = self.node_log(number), self.supernodes[number]
        deadline = time.monotonic() + START_SECONDS
        while "SuperNode ID:" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                reason = why_refused(log.read_text(), f"{self.key(number)}.pub")
                raise SystemExit(f"SuperNode {number}: {reason}; see {log}")
            time.sleep(0.2)

    def stop_node(self, number: int, how: signal.Signals = signal.SIGTERM) -> None:
        """End a SuperNode and what it started; SIGKILL is a loss of power."""
        stop(self.supernodes.pop(number), how=how)

    def run(self, app: Path, config: Mapping[str, Any], log: Path) -> Iterator[str]:
        """Run an app on the nodes; see :func:`examples.processes.run_app`."""
        return run_app(app, config, [NAME], self.environment, log)

    def traffic(self) -> dict[str, int]:
        """Give what the SuperLink counted of the last run, in bytes.

        Returns
        -------
        dict of str to int
            ``down``, to the nodes, and ``up``.
        """
        runs = ask(["ls", NAME], self.environment)["runs"]
        counted = max(runs, key=lambda run: str(run["pending-at"]))["network-traffic"]
        return {"down": counted["outbound-bytes"], "up": counted["inbound-bytes"]}


@contextmanager
def deployment(folder: Path, num_nodes: int) -> Iterator[Deployment]:
    """Keep a SuperLink and SuperNodes running; end just these, whatever happens.

    Parameters
    ----------
    folder : Path
        For keys, logs and Flower's own files.
    num_nodes : int

    Yields
    ------
    Deployment
        All of its nodes are connected.

    Raises
    ------
    SystemExit
        If a process does not start; one line says why.
    """
    folder = folder.resolve()
    keys, port = folder / "keys", free_port()
    address = f"{LOOPBACK}:{port}"
    make_certificates(keys)
    environment = flower_environment(folder / ".flwr", *MODULES)
    _write_connection(folder / ".flwr", address, keys / "ca.crt")
    command = ["flower-superlink", "--enable-supernode-auth"]
    command += ["--ssl-ca-certfile", keys / "ca.crt", "--ssl-certfile"]
    command += [keys / "server.pem", "--ssl-keyfile", keys / "server.key"]
    command += ["--host", LOOPBACK, "--port", port]
    log = folder / "superlink.log"
    with ExitStack() as stack:
        superlink = stack.enter_context(running(command, environment, log))
        wait_for_port(port, superlink, log)
        deployed = Deployment(folder, address, environment)
        stack.callback(lambda: stop(*deployed.supernodes.values()))
        for number in range(num_nodes):
            deployed.register(number)
            deployed.start_node(number)
        for number in range(num_nodes):
            deployed.wait_for_node(number)
        yield deployed


def _write_connection(home: Path, address: str, ca: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    lines = (
        f"[superlink.{NAME}]",
        f'address = "{address}"',
        f'root-certificates = "{ca}"',
    )
    (home / "config.toml").write_text("\n".join(lines) + "\n")


def why_refused(said: str, public_key: str) -> str:
    """Make one line of what a SuperNode printed before it gave up.

    Parameters
    ----------
    said : str
        Its log.
    public_key : str
        Path of its public key.

    Returns
    -------
    str
        What came, and the way out where it is known.
    """
    text = COLOUR.sub("", said)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            "the SuperLink's certificate is not signed by the authority that this node "
            "trusts, or not for this address; give it the ca.crt made with server.pem"
        )
    if "Failed to activate SuperNode" in text:
        return (
            "the SuperLink does not know this node's key; run "
            f"`flwr supernode register {public_key} {NAME}` first"
        )
    after = text.partition("Exit Code:")[2].splitlines()[1:]
    return next((line.strip() for line in after if line.strip()), "it did not connect")
