"""A federation inside one process: no engine to start, every message serialised.

For development, tests and experiments: breakpoints work, a GPU is shared by all nodes,
and node ids are the same in every run, so that a seed repeats a run exactly.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

# Private to Flower: there is no public way to serialise a message.
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from flwr_autoflip import wire

SERVER = 1
FIRST_NODE = 100
"""Node ids are this and up, in the order of partition ids."""


class InProcessGrid(Grid):
    """Nodes that run one ClientApp in turn, each with a context of its own.

    Parameters
    ----------
    app : ClientApp
    num_nodes : int
    run_config : mapping (default: empty)
        What ``context.run_config`` holds on the nodes.

    Examples
    --------
    ::

        grid = InProcessGrid(app, num_nodes=20)
        strategy.start(grid=grid, initial_arrays=arrays, num_rounds=10)
    """

    def __init__(
        self,
        app: ClientApp,
        num_nodes: int,
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.app = app
        self.contexts = {
            FIRST_NODE + i: Context(
                run_id=1,
                node_id=FIRST_NODE + i,
                node_config={"partition-id": i, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for i in range(num_nodes)
        }
        self._sent = 0
        # Strategies build messages, which Flower allows within a run only.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SERVER, 1

    def set_run(self, run: object) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """There is one run, which has no record."""
        return None

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Refuse: strategies build messages themselves."""
        raise NotImplementedError("build messages with flwr.app.Message(...).")

    def get_node_ids(self) -> Iterable[int]:
        """Give all nodes, in the order of their partitions."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: nodes run while ``send_and_receive`` waits."""
        raise NotImplementedError("use send_and_receive.")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse: nodes run while ``send_and_receive`` waits."""
        raise NotImplementedError("use send_and_receive.")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the app on every message, in turn; an exception is an error reply."""
        return [self.answer(message) for message in messages]

    def answer(self, message: Message) -> Message:
        """Run the app on one message.

        Parameters
        ----------
        message : Message
            To a node of this grid.

        Returns
        -------
        Message
            The reply, or an error that says what the app raised, or why what it said
            cannot be sent.
        """
        node = message.metadata.dst_node_id
        self._sent += 1  # Flower's own id, a hash, costs more than sending
        message.metadata.__dict__["_message_id"] = f"{self._sent}"
        request = _delivered(message)
        with _identity(node):
            try:
                return _delivered(self.app(request, self.contexts[node]))
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                return Message(Error(0, reason), reply_to=request)


def _delivered(message: Message) -> Message:
    """Give the message that comes out at the other end."""
    if message.has_error():  # a mod may answer so; there is nothing to serialise
        return message
    content, metadata = over_the_wire(message.content), message.metadata
    delivered: Message = Message(content, metadata=metadata)  # type: ignore[call-overload]
    return delivered


def over_the_wire(content: RecordDict) -> RecordDict:
    """Serialise a content and read it back, as between processes.

    Arrays hold their values as bytes, serialised already. Bytes cannot change, so
    they are handed on: a copy of them at every step costs more than all the rest.

    Parameters
    ----------
    content : RecordDict

    Returns
    -------
    RecordDict
        Equal, and sharing nothing with it that anybody could change.

    Raises
    ------
    TypeError
        If it cannot be sent.
    """
    arrays = wire.records_of(content, ArrayRecord)
    empty = {name: _with_data(record, {}) for name, record in arrays.items()}
    data = recorddict_to_proto(RecordDict({**content, **empty})).SerializeToString()
    read = recorddict_from_proto(ProtoRecordDict.FromString(data))
    for name, record in wire.records_of(read, ArrayRecord).items():
        values = {key: array.data for key, array in arrays[name].items()}
        read[name] = _with_data(record, values)
    return read


def _with_data(record: ArrayRecord, data: Mapping[str, bytes]) -> ArrayRecord:
    return ArrayRecord(
        {
            key: Array(array.dtype, array.shape, array.stype, data.get(key, b""))
            for key, array in record.items()
        },
        keep_input=False,
    )


@contextmanager
def _identity(node: int) -> Iterator[None]:
    """Act as a node: Flower stamps messages with who its process is."""
    TaskIdentity.node_id = node
    try:
        yield
    finally:
        TaskIdentity.node_id = SERVER
