"""How much memory a node takes before it refuses a message.

``python -m examples.benchmarks.refused`` sends nodes messages that are short and speak
of much, each eight times to a fresh process, and prints the most memory that reading
them took. ``class`` is an :class:`AutoFlipClient`, which knows its model; ``mod`` is an
app behind ``autoflip_mod``, which does not.
"""

import argparse
import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

# Private to Flower: there is no public way to serialise a content.
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from numpy.typing import NDArray
from torch import nn

from flwr_autoflip import AutoFlipClient, autoflip_mod, client_app, wire
from flwr_autoflip.graph.codec import encode_plan
from flwr_autoflip.graph.plan import Plan, dense_plan
from flwr_autoflip.graph.shrink import arrays_of
from flwr_autoflip.graph.tracing.trace import trace
from flwr_autoflip.ledger.cost import count_parameters

from ..inprocess import InProcessGrid

WIDTH = 1500
EXAMPLE = torch.zeros(2, WIDTH)
KINDS = ("class", "mod")


def make_model() -> nn.Module:
    """Give the nodes' own model, of 18 MB."""
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
    )


class Client(AutoFlipClient):
    """Would train, were it asked anything that it takes."""

    def train(self, model: nn.Module, config: dict[str, Any]) -> tuple[int, Any]:
        """Train nothing."""
        return 1, {}


# --- Messages ---


def content_of(config: dict[str, Any], values: NDArray[Any]) -> RecordDict:
    """Put a request together, as the server does."""
    content = honest()
    (arrays,), (settings,) = content.array_records, content.config_records
    content[arrays] = wire.to_arrayrecord({wire.keys.ARRAY: values})
    content[settings] = ConfigRecord({**content[settings], **config})
    return content


def honest() -> RecordDict:
    """Give a whole honest request."""
    model = make_model()
    plan = dense_plan(trace(model, EXAMPLE))
    instructions = wire.Instructions.of("train", plan, arrays_of(model))
    return wire.request_content(instructions, RecordDict())


def foreign(tensors: list[Any], groups: list[Any], plan: bytes) -> dict[str, Any]:
    """Give the keys of a request about another model."""
    text = json.dumps({"tensors": tensors, "groups": groups}).encode()
    return {"autoflip-layout": zlib.compress(text, 9), "autoflip-plan": plan}


def tensor(name: str, shape: list[int], owners: Any = None) -> list[Any]:
    """Give a layout's row."""
    return [name, shape, "float32", 1, owners or [None] * len(shape), [], 1.0, 0]


NOTHING = np.zeros(1, np.float32)
WHOLE = bytes([1, 0])
"""The bytes of a plan without groups."""


def deflated_layout() -> RecordDict:
    """Send a layout that inflates to lists alone."""
    text = b'{"tensors":[' + b"[]," * 400_000 + b'[]],"groups":[]}'
    return content_of({"autoflip-layout": zlib.compress(text, 9)}, NOTHING)


def many_groups() -> RecordDict:
    """Send the node's own tensors, and as many groups as fit into the text."""
    (config,) = honest().config_records.values()
    body = json.loads(zlib.decompress(config["autoflip-layout"]))  # type: ignore[arg-type]
    body["groups"] = [[f"{i}", i, 1] for i in range(80_000)]
    text = zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 9)
    return content_of({"autoflip-layout": text}, NOTHING)


def many_owners() -> RecordDict:
    """Send axes of four million indices, each of which has an owner."""
    axis = 1 << 22
    rows = [tensor(f"w{i}", [axis], [[[0, 1, axis]]]) for i in range(4)]
    return content_of(foreign(rows, [["w0", 0, 1]], WHOLE + b"\x80"), NOTHING)


def small_mask() -> RecordDict:
    """Keep one unit and some weights of a model of four billion."""
    axis = 1 << 16
    row = tensor("w", [axis, axis], [[[0, axis, 1]], None])
    plan = bytes([1, 1]) + b"\0" * 12 + b"\1" + b"\xfe" * 8192
    return content_of(foreign([row], [["w", 0, axis]], plan), NOTHING)


def own_mask() -> RecordDict:
    """Send a mask for the node's own model, and too few values."""
    layout = trace(make_model(), EXAMPLE)
    mask = {
        "0.weight": np.eye(WIDTH, dtype=bool),
        "2.weight": np.eye(WIDTH, dtype=bool),
    }
    plan = Plan(layout, dense_plan(layout).keep, mask)
    return content_of({"autoflip-plan": encode_plan(plan)}, NOTHING)


def huge_shapes() -> RecordDict:
    """Send shapes that no memory holds."""
    axis = 1 << 22
    rows = [tensor(f"w{i}", [axis, 2000]) for i in range(1)]
    return content_of(foreign(rows, [], WHOLE), NOTHING)


def numpy_head() -> RecordDict:
    """Send an array whose head says that it is a terabyte long."""
    content = honest()
    (key,) = content.array_records
    data = wire.to_arrayrecord({wire.keys.ARRAY: NOTHING})[wire.keys.ARRAY].data
    data = data.replace(b"(1,), ", b"(1<<40")[:-4]
    array = Array("float32", (1,), "numpy.ndarray", data)
    content[key] = ArrayRecord({wire.keys.ARRAY: array})
    return content


BOMBS: dict[str, Callable[[], RecordDict]] = {
    make.__name__.replace("_", " "): make
    for make in (
        *(deflated_layout, many_groups, many_owners, small_mask),
        *(own_mask, huge_shapes, numpy_head),
    )
}


# --- What they take ---


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1000 for x in lines if x.startswith(field))


def answer(kind: str, contents: list[RecordDict]) -> dict[str, Any]:
    """Answer messages as a node; give the peak of memory in MB, and the last reason."""
    app = ClientApp(mods=[autoflip_mod])
    app.train()(lambda message, context: Message(RecordDict(), reply_to=message))
    if kind == "class":
        app = client_app(lambda context: Client(make_model, context))
    grid = InProcessGrid(app, 1)
    reasons, before = [], 0.0
    for number, content in enumerate(contents):
        if number == 1:  # what the first one loaded is there now
            before = _status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        reply = grid.answer(Message(content, dst_node_id=100, message_type="train"))
        reasons.append(reply.error.reason if reply.has_error() else "")
    return {"mb": _status("VmHWM") - before, "reason": reasons[-1]}


def measure(kind: str, contents: list[RecordDict]) -> dict[str, Any]:
    """Answer in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--answer", kind]
    whole = [recorddict_to_proto(c).SerializeToString().hex() for c in contents]
    done = subprocess.run(
        command, input="\n".join(whole), capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Send every bomb to both kinds of nodes."""
    first = content_of({"autoflip-plan": b""}, NOTHING)
    for name in names:
        bomb = BOMBS[name]()
        sent = len(recorddict_to_proto(bomb).SerializeToString())
        for kind in KINDS:
            # Eight times: what is refused must not be kept either.
            row = measure(kind, [first, *[bomb] * 8])
            yield {"bomb": name, "kind": kind, "bytes": sent, **row}


def main() -> None:
    """Run what the command line asks for, or answer on a node's behalf."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bombs", nargs="+", default=list(BOMBS), choices=BOMBS)
    parser.add_argument("--answer", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        lines = [bytes.fromhex(line) for line in sys.stdin.read().splitlines()]
        protos = [ProtoRecordDict.FromString(line) for line in lines]
        contents = [recorddict_from_proto(proto) for proto in protos]
        print(json.dumps(answer(options.answer, contents)))
        return
    own = 4 * count_parameters(make_model()) / 1e6
    print(f"the nodes' own model has {own:.0f} MB\n")
    print(f"{'message':<18} {'node':<6} {'bytes':>9} {'peak MB':>8}  answer")
    for row in run(options.bombs):
        answered = row["reason"].splitlines()[0][:60] if row["reason"] else "taken"
        print(
            f"{row['bomb']:<18} {row['kind']:<6} {row['bytes']:>9} {row['mb']:>8.1f}  "
            f"{answered}",
            flush=True,
        )


if __name__ == "__main__":
    main()
