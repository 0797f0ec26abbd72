"""Targets that read files: the whole content, or an error that names the file."""

import atexit
import json
import os
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from safetensors.numpy import save

from flwr_autoflip.cli.inspect import describe
from flwr_autoflip.errors import AutoFlipError, DamagedFileError, WireError
from flwr_autoflip.graph.codec import encode_plan, layout_digest
from flwr_autoflip.graph.save import FORMAT as MODEL_FILE
from flwr_autoflip.graph.save import load_pruned, save_pruned
from flwr_autoflip.graph.storage import write_arrays
from flwr_autoflip.ledger.ledger import Ledger, Mark
from flwr_autoflip.ledger.rows import NodeRow
from flwr_autoflip.methods.base import State
from flwr_autoflip.server.persistence.checkpoint import FORMAT as CHECKPOINT
from flwr_autoflip.server.persistence.checkpoint import Checkpoints
from flwr_autoflip.server.persistence.deviations import find_report, store_report
from flwr_autoflip.server.persistence.tree import Tree
from flwr_autoflip.server.state import RunState

from .decoders import changed_layout
from .draw import Draw, change_bytes, change_json
from .harness import target
from .model import ARRAYS, DENSE, LAYOUT, MASKED, MODEL, PLANS, SMALL, Net

_MEMORY = Path("/dev/shm")  # files are written to disk to stay, which takes long
HERE = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
_OWNER = os.getpid()  # its children, one a target, leave the folder alone
FILE = HERE / "file.safetensors"


@atexit.register
def _clean_up() -> None:
    if os.getpid() == _OWNER:
        shutil.rmtree(HERE, ignore_errors=True)


NODE = 7
REPORT = {t.name: np.square(ARRAYS[t.name]) for t in LAYOUT.tensors if t.trainable}
STORED = store_report(HERE / "seed", NODE, REPORT)


@target([STORED.path.read_bytes()])
def report_file(data: bytes) -> Iterator[bool]:
    """Open a report's file: what was written, or damaged."""
    (HERE / STORED.path.name).write_bytes(data)
    found = find_report(HERE, STORED.path.name, STORED.checksum)
    if found is None:
        raise WireError("damaged")
    yield True
    for name, expected in REPORT.items():
        np.testing.assert_array_equal(found[name], expected, strict=True)


FRESH = RunState(State(DENSE), ArrayRecord({}), ConfigRecord({}), ConfigRecord({}))
INNER = {
    "plain": [None, True, 1, -2.5, "x", b"abc", (1, 2), {3}],
    "arrays": {"a": np.arange(3.0), "b": np.float32(2)},
    "kinds": [ArrayRecord({}), np.random.default_rng(0), SMALL],
}
TREE = [
    Tree().write({"model": layout_digest(LAYOUT).hex()}),
    Tree().write(asdict(Ledger().mark())),
    None,
    Tree(LAYOUT).write_fields(replace(FRESH, inner=INNER)),
]


@target([b"\0" + json.dumps(TREE).encode(), b"\0[]", b"\1\2\1\4\1\1"])
def checkpoint(data: bytes) -> Iterator[bool]:
    """Load a checkpoint: a whole file around any tree, or a changed one."""
    text = data[1:].decode("utf-8", "replace")
    if data[:1] == b"\1":
        draw, tree = Draw(data[1:]), TREE
        for _ in range(1 + draw.number() % 3):
            tree = change_json(draw, tree)
        text = json.dumps(tree)
    path = HERE / "checkpoint-000001.safetensors"
    arrays = {"0": np.arange(3.0), "1": np.float32(2), "2": np.zeros(0, np.uint8)}
    write_arrays(path, arrays, {"format": CHECKPOINT, "state": text})
    Checkpoints(HERE, {}, LAYOUT, noisy=False)._read(path, FRESH)
    yield True


def real_model() -> bytes:
    """Give a pruned model's file."""
    save_pruned(FILE, MODEL, MASKED)
    return FILE.read_bytes()


@target(
    [
        *(b"\xff" + real_model(), bytes([0, 2, 0]), b"\0\2\1\4\7\3\1", b"\1\2\1\4\1\1"),
        *(bytes([0, number, 0, 0]) for number in range(3)),
    ],
    8192,
)
def model_file(data: bytes) -> Iterator[bool]:
    """Load and describe a pruned model: any bytes, or a file around any layout."""
    draw = Draw(data)
    kind = draw.number()
    if kind == 255:
        FILE.write_bytes(draw.rest())
    else:
        asked = draw.pick(PLANS)
        codes = [changed_layout(draw), encode_plan(asked)]
        if kind % 4 == 1:
            codes[1] = change_bytes(draw, codes[1])
        layout, plan = (b64encode(code).decode() for code in codes)
        values = {"format": MODEL_FILE, "layout": layout, "plan": plan}
        if kind % 4 == 2:
            values[draw.pick(("layout", "plan", "more", "format"))] = draw.rest().hex()
        small = {n: asked.take(n, a).copy() for n, a in ARRAYS.items()}
        small |= {name: small[name][mask] for name, mask in asked.small_mask.items()}
        FILE.write_bytes(save(small, values))
    found = describe(FILE)
    yield True
    json.dumps(found, allow_nan=False)
    assert 0 <= found["parameters"] <= found["dense_parameters"]
    assert 0 <= found["bytes"] <= found["dense_bytes"]
    assert all(layer["name"].isprintable() for layer in found["layers"])
    try:
        model, read = load_pruned(FILE, Net)
    except AutoFlipError:  # whole, but of another model
        return
    for tensor in read.layout.tensors:
        shape = model.state_dict()[tensor.name].shape
        assert shape == read.small_shape(tensor.name)


def real_line() -> bytes:
    """Give a row."""
    Ledger(HERE / "seed.jsonl").add(NodeRow(2, "train", NODE))
    return (HERE / "seed.jsonl").read_bytes()


LINE = real_line()


@target([LINE, LINE[:40], LINE + b'{"round": 2, "phase": "server"}\n'], 512)
def ledger(data: bytes) -> Iterator[bool]:
    """Resume a ledger whose file has anything behind the mark."""
    path = HERE / "ledger.jsonl"
    path.unlink(missing_ok=True)
    begun = Ledger(path)
    begun.add(NodeRow(1, "train", NODE, bytes_up=5))
    mark = begun.mark()
    with path.open("ab") as file:
        file.write(data)
    again = Ledger(path)
    again.resume(mark)
    rows = list(again.rows)
    yield len(rows) > 1
    assert rows[0]["bytes_up"] == 5
    assert all(row["status"] == "lost" for row in rows[1:])
    try:
        again.check(Mark(mark.size, "0"))
    except DamagedFileError:
        return
    raise AssertionError("a wrong digest was accepted")
