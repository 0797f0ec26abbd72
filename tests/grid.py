"""The in-process grid, with a log and faults to order."""

from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.clientapp import ClientApp

from examples.inprocess import InProcessGrid

Fault = Callable[[int, Message], Message | None]


class LocalGrid(InProcessGrid):
    """Nodes 100, 101, ... run one ClientApp.

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
        super().__init__(app, num_nodes)
        self.fault = fault
        self.log: list[tuple[int, Message]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run the app on every message, in turn."""
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            self.log.append((node, message))
            reply: Message | None = self.answer(message)
            if self.fault is not None:
                reply = self.fault(node, reply)
            if reply is not None:
                replies.append(reply)
        return replies
