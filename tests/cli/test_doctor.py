"""Flower's traps, each set and found."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flwr_autoflip.cli import doctor
from flwr_autoflip.cli.doctor import (
    NO_INSTALLATION,
    PORT_VARIABLE,
    Finding,
    check_environment,
    check_flower,
    check_python,
    check_ray,
    check_superlink,
    check_torch,
    examine,
    find_processes,
)
from flwr_autoflip.cli.main import app

GOOD = {
    NO_INSTALLATION: "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("found", "status"),
    [
        *((check_flower(None), "problem"), (check_flower("1.40.1"), "problem")),
        *((check_flower("1.41.0"), "ok"), (check_flower("1.43.0"), "ok")),
        *((check_flower("2.0.0"), "problem"), (check_python((3, 10, 9)), "problem")),
        *((check_python((3, 11, 0)), "ok"), (check_ray("2.55.1"), "ok")),
        *((check_ray("2.40.0"), "warning"), (check_ray(None), "warning")),
    ],
)
def test_versions_are_looked_at(found: Finding, status: str) -> None:
    assert found.status == status
    assert bool(found.way_out) == (status != "ok")


def test_versions_are_those_that_the_package_asks_for() -> None:
    """The pins here, in pyproject.toml and in Flower itself are the same."""
    from importlib.metadata import requires

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()

    assert f'"flwr>={".".join(map(str, doctor.FLOWER))},<2"' in text
    assert f'requires-python = ">={".".join(map(str, doctor.PYTHON))}"' in text
    wanted = [line for line in requires("flwr") or [] if line.startswith("ray")]
    assert wanted
    assert all(line.startswith(f"ray=={doctor.RAY}") for line in wanted)
    names = {
        line.partition(">")[0].partition("<")[0] for line in requires("flwr") or []
    }
    assert {"typer", "rich"} <= names  # what our command line stands on


def test_a_pair_that_does_not_load_is_a_problem() -> None:
    def broken(name: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    found = check_torch(broken)

    if doctor.installed("torchvision") is None:
        pytest.skip("torchvision is not installed")
    assert found.status == "problem"
    assert "torchvision::nms does not exist" in found.found
    assert "and more" not in found.found
    assert "--force-reinstall torch torchvision" in found.way_out
    assert check_torch(lambda name: None).status == "ok"


def test_variables_are_looked_at() -> None:
    assert {f.status for f in check_environment(GOOD)} == {"ok"}
    word = {**GOOD, NO_INSTALLATION: "true"}
    assert {f.status for f in check_environment(word)} == {"ok"}
    for name, value in GOOD.items():
        wrong = {**GOOD, name: "1" if value == "0" else ""}
        (bad,) = [f for f in check_environment(wrong) if f.status != "ok"]
        assert bad.check == name
        assert f"export {name}={value}" in bad.way_out


def process(folder: Path, pid: int, words: list[str], environment: str) -> None:
    (folder / str(pid)).mkdir(parents=True)
    (folder / str(pid) / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
    (folder / str(pid) / "environ").write_bytes(environment.encode() + b"\0")


def test_a_superlink_left_behind_is_found(tmp_path: Path) -> None:
    words = ["/usr/bin/python", "/venv/bin/flower-superlink", "--simulation"]
    process(tmp_path, 71, words, f"A=1\0{NO_INSTALLATION}=1")
    process(tmp_path, 72, ["vim", "notes", "about", "flower-superlink"], "")
    environment = {PORT_VARIABLE: free_port()}

    (good,) = check_superlink(environment, tmp_path)
    process(tmp_path, 80, ["/venv/bin/flower-superexec"], "A=1")
    (stale,) = check_superlink(environment, tmp_path)
    (none,) = check_superlink(environment, tmp_path / "nowhere")

    assert good.status == "warning"
    assert good.way_out.endswith("kill 71")
    assert stale.status == "problem"
    assert NO_INSTALLATION in stale.found
    assert stale.way_out.endswith("kill 71 80")
    assert none == Finding(
        "SuperLink", "ok", f"none runs, port {environment[PORT_VARIABLE]} is free"
    )


def test_a_port_that_is_taken_is_found(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])

        (found,) = check_superlink({PORT_VARIABLE: port}, tmp_path)

    assert found.status == "warning"
    assert f"listens on {port}" in found.found
    assert PORT_VARIABLE in found.way_out


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux")
def test_real_processes_are_found(tmp_path: Path) -> None:
    script = tmp_path / "flower-superlink"
    script.write_text("import time; time.sleep(60)")
    running = subprocess.Popen([sys.executable, str(script)])
    try:
        for _ in range(100):
            found = list(find_processes(Path("/proc"), ("flower-superlink",)))
            if running.pid in found:
                break
            time.sleep(0.05)
    finally:
        running.kill()
        running.wait()

    assert running.pid in found
    assert os.getpid() not in found


def test_everything_is_examined(tmp_path: Path) -> None:
    environment = {**GOOD, PORT_VARIABLE: free_port()}

    found = {
        finding.check: finding.status for finding in examine(environment, tmp_path)
    }

    assert set(found) == {"Python", "Flower", "Ray", "PyTorch", *GOOD, "SuperLink"}
    assert found["SuperLink"] == found["Python"] == found["Flower"] == "ok"


# --- What is shown ---

FINDINGS = [
    Finding("Python", "ok", "3.11.7"),
    Finding("SuperLink", "problem", "runs [already] " * 8, "end it: kill 1 2"),
]


def test_doctor_says_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: FINDINGS)
    environment = {"COLUMNS": "80", "TERM": "dumb"}

    done = CliRunner(env=environment).invoke(app, ["doctor"])

    assert done.exit_code == 1  # there is a problem
    assert "problem SuperLink: runs [already]" in done.stdout
    assert "   end it: kill 1 2" in done.stdout
    assert "1 problems, 0 warnings." in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_doctor_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: FINDINGS[:1])

    done = CliRunner().invoke(app, ["doctor", "--json"])

    assert done.exit_code == 0
    assert json.loads(done.stdout) == [
        {"check": "Python", "status": "ok", "found": "3.11.7", "way_out": ""}
    ]
