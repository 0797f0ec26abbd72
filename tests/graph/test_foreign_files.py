"""Files that somebody else wrote, or that were damaged: named, never half read."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from federation import EXAMPLE, TinyNet
from safetensors import safe_open
from safetensors.numpy import save

from flwr_autoflip import AutoFlipError, load_pruned, save_pruned
from flwr_autoflip.errors import DamagedFileError
from flwr_autoflip.graph.plan import dense_plan
from flwr_autoflip.graph.save import read_pruned
from flwr_autoflip.graph.storage import read_arrays
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.ledger import Ledger
from flwr_autoflip.ledger.rows import NodeRow

LAYOUT = trace(TinyNet(), EXAMPLE)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2"])
def test_dtypes_that_numpy_lacks(tmp_path: Path, dtype: str) -> None:
    size = 2 if dtype == "BF16" else 1
    about = {"a": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}
    head = json.dumps(about).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(size))

    with pytest.raises(DamagedFileError, match="cannot be read"):
        read_arrays(path)
    with pytest.raises(AutoFlipError, match="no whole pruned model"):
        load_pruned(path, TinyNet)


@pytest.mark.parametrize("read", [read_arrays, read_pruned], ids=["arrays", "model"])
def test_an_error_does_not_repeat_a_files_escapes(tmp_path: Path, read: Any) -> None:
    about = {"a": {"dtype": "\x1b[2J\n\u202e", "shape": [1], "data_offsets": [0, 1]}}
    head = json.dumps(about).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(1))

    with pytest.raises(AutoFlipError, match=r"\[2J") as found:
        read(path)

    assert str(found.value).isprintable()


def test_a_model_file_with_a_tensor_of_nobody(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_pruned(path, TinyNet(), dense_plan(LAYOUT))
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        path.write_bytes(
            save({**arrays, "\x1b[2J": arrays["conv.bias"]}, file.metadata())
        )

    with pytest.raises(AutoFlipError, match=r"lacks the tensor '\?\[2J'"):
        read_pruned(path)


def test_a_model_file_with_a_plan_that_is_no_base64(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_pruned(path, TinyNet(), dense_plan(LAYOUT))
    data = path.read_bytes()
    start = data.index(b'"plan":"') + len(b'"plan":"')
    path.write_bytes(data[:start] + b"?" + data[start + 1 :])

    with pytest.raises(AutoFlipError, match="no whole pruned model"):
        load_pruned(path, TinyNet)


@pytest.mark.parametrize(
    "line",
    [b"5", b"[]", b'{"round": 1}', b'{"round": 1, "phase": "train"}', b"[" * 10**5],
)
def test_a_ledger_ends_at_what_is_no_row(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.add(NodeRow(1, "train", 7, bytes_up=5))
    mark = ledger.mark()
    with path.open("ab") as file:
        file.write(line + b"\n")

    again = Ledger(path)
    again.resume(mark)

    assert [row["bytes_up"] for row in again.rows] == [5]
