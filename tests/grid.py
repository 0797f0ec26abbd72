"""A Grid in this process: every message is serialised both ways, as on a network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity

Fault = Callable[[int, Message], Message | None]


def over_the_wire(content: RecordDict) -> RecordDict:
    """Deflate and inflate a content, as Flower does between processes."""
    objects = get_all_nested_objects(content)
    inflated: dict[str, object] = {}
    for key, obj in objects.items():
        children = {
            c.object_id: inflated[c.object_id] for c in (obj.children or {}).values()
        }
        inflated[key] = type(obj).inflate(obj.deflate(), children)
    result = inflated[content.object_id]
    assert isinstance(result, RecordDict)
    return result


class LocalGrid(Grid):
    """Nodes 1..n run one ClientApp, each with a context of its own.

    Parameters
    ----------
    app : ClientApp
    num_nodes : int
    fault : callable, optional
        ``(node, reply) -> reply`` or None to lose it.
    """

    def __init__(
        self, app: ClientApp, num_nodes: int, fault: Fault | None = None
    ) -> None:
        self.app, self.fault = app, fault
        self.contexts = {
            100 + i: Context(
                run_id=1,
                node_id=100 + i,
                node_config={"partition-id": i, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config={},
            )
            for i in range(num_nodes)
        }
        self.log: list[tuple[int, Message]] = []
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def set_run(self, run: object) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> object:
        """There is one run."""
        return None

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Refuse: the strategies under test build messages themselves."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refuse: use send_and_receive."""
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refuse: use send_and_receive."""
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the app on every message, in turn."""
        return list(self._answers(list(messages)))

    def _answers(self, messages: list[Message]) -> Iterator[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = message.object_id
            self.log.append((node, message))
            request = Message(over_the_wire(message.content), metadata=message.metadata)
            reply = self._run(node, request)
            if self.fault is not None:
                reply = self.fault(node, reply)
            if reply is not None:
                yield reply

    def _run(self, node: int, request: Message) -> Message:
        with self._as_node(node):
            try:
                reply = self.app(request, self.contexts[node])
            except Exception as error:
                return Message(
                    Error(0, f"{type(error).__name__}: {error}"), reply_to=request
                )
        return Message(over_the_wire(reply.content), metadata=reply.metadata)

    @contextmanager
    def _as_node(self, node: int) -> Iterator[None]:
        TaskIdentity.node_id = node
        try:
            yield
        finally:
            TaskIdentity.node_id = 1
