"""What the examples start ends with them, however they end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples.processes import descendants, running, still_alive, stop

SLEEP = "import time; time.sleep(60)"
PARENT = f"""
import os, sys, time
from pathlib import Path
from examples.processes import running

command = [Path(sys.executable).name, "-c", {SLEEP!r}]
with running(command, os.environ, Path(sys.argv[1])) as process:
    print(process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -2)]
)
def test_who_is_told_to_end_ends_what_it_started(
    tmp_path: Path, how: signal.Signals, code: int
) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)  # it is there

        parent.send_signal(how)

        assert parent.wait(timeout=30) == code
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_failure_stops_what_runs_and_signals_do_what_they_did(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    command = [Path(sys.executable).name, "-c", SLEEP]

    with (
        pytest.raises(RuntimeError, match="on purpose"),
        running(command, os.environ, tmp_path / "log") as process,
    ):
        raise RuntimeError("on purpose")

    assert process.returncode == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_process_started_ends_with_it(how: signal.Signals) -> None:
    # The child leads a session of its own, as Flower's helpers do.
    script = (
        "import subprocess, time\n"
        "subprocess.Popen(['sleep', '2'], start_new_session=True)\n"
        "print('ready', flush=True)\n"
        "time.sleep(100)\n"
    )
    bystander = subprocess.Popen(["sleep", "100"])
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    family = descendants(process.pid)

    stop(process, how=how)
    process.stdout.close()

    assert len(family) == 1
    assert process.returncode == -how
    assert not still_alive(family)
    assert bystander.poll() is None
    stop(bystander)
