"""What arrives in process is what would arrive from elsewhere, and nobody else's."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

# Private to Flower, as in the module.
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from examples.inprocess import over_the_wire


def content_of(**arrays: Any) -> RecordDict:
    records: dict[str, Any] = {
        "settings": ConfigRecord({"lr": 0.5, "names": ["a", "b"]}),
        "arrays": ArrayRecord({k: Array(v) for k, v in arrays.items()}),
        "metrics": MetricRecord({"loss": 0.25, "counts": [1, 2]}),
        "nothing": ArrayRecord(),
    }
    return RecordDict(records)


def plainly(content: RecordDict) -> RecordDict:
    """Serialise all of it: the reference."""
    data = recorddict_to_proto(content).SerializeToString()
    return recorddict_from_proto(ProtoRecordDict.FromString(data))


def test_it_is_what_serialising_all_of_it_gives() -> None:
    content = content_of(weight=np.arange(6.0).reshape(2, 3), bias=np.zeros(0, "int8"))

    received = over_the_wire(content)

    assert received == plainly(content) == content
    assert list(received) == list(plainly(content)) == list(content)
    np.testing.assert_array_equal(
        received.array_records["arrays"]["weight"].numpy(), [[0, 1, 2], [3, 4, 5]]
    )


def test_what_the_receiver_changes_the_sender_does_not_see() -> None:
    content, untouched = content_of(weight=np.ones(3)), content_of(weight=np.ones(3))

    received: Any = over_the_wire(content)
    received["settings"]["lr"] = 7.0
    received["settings"]["names"].append("c")
    received["metrics"]["counts"].append(3)
    received["arrays"]["weight"].shape = (1, 3)
    received["arrays"]["weight"].data = b"other"
    received["arrays"]["more"] = Array(np.zeros(1))
    del received["nothing"]

    assert content == untouched


@pytest.mark.parametrize("data", [bytearray(b"values"), "values", 3])
def test_what_cannot_be_sent_does_not_arrive(data: Any) -> None:
    content = content_of(weight=np.ones(3))
    content.array_records["arrays"]["weight"].data = data

    with pytest.raises(TypeError):
        plainly(content)
    with pytest.raises(TypeError):
        over_the_wire(content)
