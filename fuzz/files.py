"""Targets that read files: the whole content, or an error that names the file."""

import atexit
import json
import os
import shutil
import struct
import tempfile
import zlib
from base64 import b64encode
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from safetensors.numpy import save

from flwr_autoflip.cli.inspect import describe
from flwr_autoflip.errors import AutoFlipError, DamagedFileError
from flwr_autoflip.graph.codec import encode_layout, encode_plan, layout_digest
from flwr_autoflip.graph.save import FORMAT as MODEL_FILE
from flwr_autoflip.graph.save import load_pruned, save_pruned
from flwr_autoflip.graph.storage import read_arrays, write_arrays
from flwr_autoflip.ledger.ledger import Ledger, Mark
from flwr_autoflip.ledger.rows import NodeRow
from flwr_autoflip.methods.base import State
from flwr_autoflip.server.persistence.checkpoint import FORMAT as CHECKPOINT
from flwr_autoflip.server.persistence.checkpoint import Checkpoints
from flwr_autoflip.server.persistence.reports import find_report, store_report
from flwr_autoflip.server.persistence.tree import TreeWriter
from flwr_autoflip.server.state import RunState

from .draw import Draw, change_bytes, change_json
from .model import ARRAYS, DENSE, LAYOUT, MASKED, MODEL, SMALL, Net

_MEMORY = Path("/dev/shm")  # files are written to disk to stay, which takes long
HERE = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None))
_OWNER = os.getpid()  # its children, one a target, leave the folder alone


@atexit.register
def _clean_up() -> None:
    if os.getpid() == _OWNER:
        shutil.rmtree(HERE, ignore_errors=True)


NODE = 7
REPORT = {t.name: np.square(ARRAYS[t.name]) for t in LAYOUT.tensors if t.trainable}


STORED = store_report(HERE / "seed", NODE, REPORT)


def fuzz_report_file(data: bytes) -> bool:
    """Open a report's file: what was written, or damaged."""
    name = STORED.path.name
    (HERE / name).write_bytes(data)
    found = find_report(HERE, name, STORED.checksum)
    if found is None:
        return False
    assert list(found) == list(REPORT)
    for name, expected in REPORT.items():
        np.testing.assert_array_equal(found[name], expected, strict=True)
    return True


def seed_report_file() -> list[bytes]:
    """Give a real file."""
    return [STORED.path.read_bytes()]


FRESH = RunState(State(DENSE), ArrayRecord({}), ConfigRecord({}), ConfigRecord({}))
SETTINGS = TreeWriter().write({"model": layout_digest(LAYOUT).hex()})
TREE = [
    SETTINGS,
    TreeWriter().write(asdict(Ledger().mark())),
    None,
    TreeWriter(layout=LAYOUT).write_fields(
        replace(
            FRESH,
            inner={
                "plain": [None, True, 1, -2.5, "x", b"abc", (1, 2), {3}],
                "arrays": {"a": np.arange(3.0), "b": np.float32(2)},
                "kinds": [ArrayRecord({}), np.random.default_rng(0), SMALL],
            },
        )
    ),
]


def fuzz_checkpoint(data: bytes) -> bool:
    """Load a checkpoint: any bytes, or a whole file around any tree."""
    folder = HERE / "checkpoints"
    folder.mkdir(exist_ok=True)
    path = folder / "checkpoint-000001.safetensors"
    if data[:1] == b"\xff":
        path.write_bytes(data[1:])
    else:
        text = data[1:].decode("utf-8", "replace")
        if data[:1] == b"\1":
            draw, tree = Draw(data[1:]), TREE
            for _ in range(1 + draw.number() % 3):
                tree = change_json(draw, tree)
            text = json.dumps(tree)
        arrays = {"0": np.arange(3.0), "1": np.float32(2), "2": np.zeros(0, np.uint8)}
        write_arrays(path, arrays, {"format": CHECKPOINT, "state": text})
    try:
        Checkpoints(folder, {}, LAYOUT, noisy=False)._read(path, FRESH)
    except AutoFlipError:
        return False
    return True


def seed_checkpoint() -> list[bytes]:
    """Give trees of every kind, and a real file."""
    whole = HERE / "seed.safetensors"
    write_arrays(whole, {"0": np.arange(3.0)}, {"format": CHECKPOINT, "state": "1"})
    return [
        b"\0" + json.dumps(TREE).encode(),
        b"\0[]",
        b"\1\2\1\4\1\1",
        b"\xff" + whole.read_bytes(),
    ]


def fuzz_safetensors(data: bytes) -> bool:
    """Read a file of arrays: a header that the harness frames, or bytes as they are."""
    path = HERE / "arrays.safetensors"
    if data[:1] == b"\xff":
        path.write_bytes(data[1:])
    else:
        header, _, body = data[1:].partition(b"\0")
        path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    try:
        read_arrays(path)
    except DamagedFileError:
        return False
    return True


def seed_safetensors() -> list[bytes]:
    """Give a real file, and its header with data of every dtype."""
    path = HERE / "seed-arrays.safetensors"
    write_arrays(path, ARRAYS, {"format": "x"})
    heads = [
        b'\0{"a":{"dtype":"%s","shape":[2],"data_offsets":[0,%d]}}\0%s'
        % (dtype, size, bytes(size))
        for dtype, size in ((b"F32", 8), (b"BF16", 4), (b"F8_E4M3", 2), (b"BOOL", 2))
    ]
    return [b"\xff" + path.read_bytes(), *heads]


def fuzz_model_file(data: bytes) -> bool:
    """Load a pruned model: any bytes, or a whole file around any layout and plan."""
    path = HERE / "model.safetensors"
    draw = Draw(data)
    kind = draw.number()
    if kind == 255:
        path.write_bytes(draw.rest())
    else:
        texts = [b64encode(encode_layout(LAYOUT)), b64encode(encode_plan(MASKED))]
        if kind % 4:
            texts[kind % 2] = change_bytes(draw, texts[kind % 2])
        layout, plan = (text.decode("latin-1") for text in texts)
        values = {"format": MODEL_FILE, "layout": layout, "plan": plan}
        small = {n: MASKED.take(n, a).copy() for n, a in ARRAYS.items()}
        for name, mask in MASKED.small_mask.items():
            small[name] = small[name][mask]
        path.write_bytes(save(small, values))
    try:
        model, plan_read = load_pruned(path, Net)
    except AutoFlipError:
        return False
    state = {name: t.numpy() for name, t in model.state_dict().items()}
    assert {n: a.shape for n, a in state.items()} == {
        t.name: plan_read.small_shape(t.name) for t in plan_read.layout.tensors
    }
    return True


def seed_model_file() -> list[bytes]:
    """Give a real file, and changes of its layout and plan."""
    path = HERE / "seed-model.safetensors"
    save_pruned(path, MODEL, MASKED)
    return [b"\xff" + path.read_bytes(), b"\0", b"\1\5\0\4\1", b"\2\3\0\4\1"]


def fuzz_model_metadata(data: bytes) -> bool:
    """Describe a model file whose layout says something else, as ``inspect`` does."""
    path = HERE / "metadata.safetensors"
    draw, body = Draw(data), json.loads(zlib.decompress(encode_layout(LAYOUT)))
    for _ in range(draw.number() % 4):
        body = change_json(draw, body)
    layout = zlib.compress(json.dumps(body).encode(), 1)
    plan = draw.pick((DENSE, SMALL, MASKED))
    code = encode_plan(plan)
    if draw.number() % 4 == 1:
        code = change_bytes(draw, code)
    texts = {"layout": b64encode(layout).decode(), "plan": b64encode(code).decode()}
    if draw.number() % 4 == 1:
        texts[draw.pick(("layout", "plan", "more", "format"))] = draw.rest().hex()
    small = {n: plan.take(n, a).copy() for n, a in ARRAYS.items()}
    for name, mask in plan.small_mask.items():
        small[name] = small[name][mask]
    path.write_bytes(save(small, {"format": MODEL_FILE, **texts}))
    try:
        found = describe(path)
    except AutoFlipError:
        return False
    json.dumps(found, allow_nan=False)
    assert 0 <= found["parameters"] <= found["dense_parameters"]
    assert 0 <= found["bytes"] <= found["dense_bytes"]
    assert all(layer["name"].isprintable() for layer in found["layers"])
    return True


def seed_model_metadata() -> list[bytes]:
    """Give whole files of all plans, and some that say something else."""
    whole = [bytes([0, plan, 0, 0]) for plan in range(3)]
    return [*whole, b"\1\1\4\7\3\1", b"\2\3\2\1\1\4\2", b"\0\0\1\2\4\1"]


def fuzz_ledger(data: bytes) -> bool:
    """Resume a ledger whose file has anything behind the mark."""
    path = HERE / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.add(NodeRow(1, "train", NODE, bytes_up=5))
    mark = ledger.mark()
    with path.open("ab") as file:
        file.write(data)
    again = Ledger(path)
    again.resume(mark)
    rows = list(again.rows)
    assert rows[0]["bytes_up"] == 5
    assert all(row["status"] == "lost" for row in rows[1:])
    try:
        again.check(Mark(mark.size, "0"))
    except DamagedFileError:
        return len(rows) > 1
    raise AssertionError("a wrong digest was accepted")


def seed_ledger() -> list[bytes]:
    """Give a row, and one cut short."""
    path = HERE / "seed.jsonl"
    Ledger(path).add(NodeRow(2, "train", NODE))
    line = path.read_bytes()
    return [line, line[:40], line + b'{"round": 2, "phase": "server"}\n']
