"""What the examples start ends with them, however they end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples.processes import running

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


def test_afterwards_signals_do_what_they_did(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    command = [Path(sys.executable).name, "-c", SLEEP]

    with running(command, os.environ, tmp_path / "log"):
        assert signal.getsignal(signal.SIGTERM) != before

    assert signal.getsignal(signal.SIGTERM) == before
