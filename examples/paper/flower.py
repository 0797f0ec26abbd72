"""The second backend: the same run through ``flwr run``."""

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from ..simulation import flwr_run, superlink
from .federation import Setting

PARTITION = "partition-id"
APP = Path(__file__).parent / "app"
ROOT = Path(__file__).parents[2]


class PartitionGrid(Grid):
    """Nodes in the order of their partitions, around Flower's own grid.

    Flower numbers nodes at random; strategies sample from that list and add replies up
    as they come. In the order of partitions a seed decides both.

    Parameters
    ----------
    grid : Grid
    num_nodes : int
        To wait for.
    """

    def __init__(self, grid: Grid, num_nodes: int) -> None:
        self.grid = grid
        while len(nodes := list(grid.get_node_ids())) < num_nodes:
            time.sleep(0.5)
        question = RecordDict({"node": ConfigRecord()})
        answers = grid.send_and_receive(
            [Message(question, dst_node_id=n, message_type="query") for n in nodes]
        )
        self.partition = {
            answer.metadata.src_node_id: int(answer.content["node"][PARTITION])  # type: ignore[arg-type]
            for answer in answers
        }

    def get_node_ids(self) -> Iterable[int]:
        """Give node ids, ordered by partition."""
        return sorted(self.partition, key=self.partition.__getitem__)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Give replies, ordered by partition."""
        replies = self.grid.send_and_receive(messages, timeout=timeout)
        return sorted(
            replies,
            key=lambda reply: self.partition.get(reply.metadata.src_node_id, -1),
        )

    def set_run(self, run: Any) -> None:
        """Leave it to Flower's grid."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """Leave it to Flower's grid."""
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Leave it to Flower's grid."""
        return self.grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Leave it to Flower's grid."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Leave it to Flower's grid."""
        return self.grid.pull_messages(message_ids)


def run_with_flower(setting: Setting, folder: Path) -> None:
    """Make a run through ``flwr run``, on a SuperLink that lives as long as it does.

    Parameters
    ----------
    setting : Setting
    folder : Path
        For ``log.txt`` and what :func:`.federation.run_server` writes.
    """
    folder = folder.resolve()
    data = str(Path(setting.data).resolve()) if setting.data else ""
    config = asdict(setting) | {"data": data, "folder": str(folder)}
    nodes = setting.load().num_nodes
    with superlink(folder, ROOT) as environment:
        for _ in flwr_run(APP, config, nodes, environment, folder / "log.txt"):
            pass
